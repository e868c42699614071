"""Collation: one batch from the bytes of its samples."""

"""Samples that worker processes get as files to map."""

"""Formats of other trainers whose latents can be imported."""

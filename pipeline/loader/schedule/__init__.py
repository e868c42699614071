"""Schedules: which samples form which batch on which rank in an epoch, as pure functions of numbers."""

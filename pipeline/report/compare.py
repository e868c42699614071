"""Samples encoded again from their sources, beside what an output holds."""

from __future__ import annotations

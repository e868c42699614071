"""Numbers as text for people, the same in the progress line, the summary, the dry run and the report."""

from __future__ import annotations


def number(count: int, noun: str = "") -> str:
    """Format a count, with its noun in the right number: ``1 clip``, ``1,200 clips``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if noun else f"{count:,}"


def byte_size(num_bytes: float) -> str:
    """Format bytes with three digits and a decimal unit: ``1.5 kB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.0f} {unit}" if unit == "bytes" or num_bytes >= 100 else f"{num_bytes:.3g} {unit}"


def duration(seconds: float) -> str:
    """Format seconds in the most readable of s, min and h."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{round(seconds, 1):g} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 3600:,.0f} h"


def elapsed(seconds: float) -> str:
    """Format the time that a job takes: like ``duration``, but in days from two days on."""
    return f"{seconds / 86400:.1f} days" if seconds >= 2 * 86400 else duration(seconds)


def percent(share: float) -> str:
    """Format a share between 0 and 1 as a percentage, with one decimal below 10 %."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"

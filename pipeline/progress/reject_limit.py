"""The share of rejects above which a job stops."""

from __future__ import annotations

from pipeline.output.counts import Counts
from pipeline.output.edits.edits import REMOVED

MIN_WINDOWS_TO_STOP = 200
"""Number of windows before the share of rejects may stop the job."""
MIN_WINDOWS_IN_FLIGHT = 1000
"""The same with the windows of units in flight, which may begin with their worst part."""


def failed_windows(counts: Counts) -> int:
    """Number of rejects that count for the limit: all but those of removed items and samples."""
    return counts.rejects.total() - counts.rejects[REMOVED.name]


def too_many_rejects(rejects: int, windows: int, max_rejects: float, *, final: bool = False) -> bool:
    """Return True if the share of rejects exceeds ``max_rejects``.

    A job that still runs is not judged before a few hundred windows. If the counts are ``final``, fewer windows suffice
    where all of them are rejects.
    """
    enough = windows >= MIN_WINDOWS_TO_STOP or (final and rejects == windows > 0)
    return enough and rejects / windows > max_rejects

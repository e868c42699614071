"""The moments at which a job may die: each step that leaves something behind in the output has a name.

``LATENTMILL_KILL_AT=<step>`` (or ``<step>:<n>`` for the n-th time) ends the process at that step as a power cut would.
It is how the tests, and whoever wants a drill, see that running the same command again finishes the job.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum

VARIABLE = "LATENTMILL_KILL_AT"


class Failpoint(StrEnum):
    """In the order in which a job first reaches them. Named for what has just become durable."""

    FILE_WRITTEN = "file-written"
    """In the scratch folder, not yet under its name (local outputs)."""
    FILE_LINKED = "file-linked"
    """Under its name, the folder not yet synced (local outputs)."""
    DATASET_RECORDED = "dataset-recorded"
    PLAN_RECORDED = "plan-recorded"
    ATTEMPT_RECORDED = "attempt-recorded"
    SAMPLE_WRITTEN = "sample-written"
    """To the tar on local disk."""
    TAR_WRITTEN = "tar-written"
    """Whole, on local disk."""
    TAR_UPLOADED = "tar-uploaded"
    UNIT_COMMITTED = "unit-committed"
    RUN_RECORDED = "run-recorded"
    INDEX_PART_WRITTEN = "index-part-written"
    INDEX_RECORDED = "index-recorded"
    ORPHAN_REMOVED = "orphan-removed"
    ATTEMPT_REMOVED = "attempt-removed"
    SCRATCH_REMOVED = "scratch-removed"
    """A file that a dead writer left in the scratch folder."""
    SUMMARY_WRITTEN = "summary-written"
    REPORT_WRITTEN = "report-written"


_times: defaultdict[Failpoint, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def failpoint(step: Failpoint) -> None:
    """Say that ``step`` is done. Does nothing, unless this is where the process was told to die."""
    name, _, nth = os.environ.get(VARIABLE, "").partition(":")
    if name == step and next(_times[step]) == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)

"""Names for the steps after which a job leaves something behind in the output, to kill it there in tests.

``LATENTMILL_KILL_AT=<step>`` (or ``<step>:<n>`` for the n-th time) ends the process at that step like a power cut.
Tests and drills use it to check that running the same command again finishes the job.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from enum import Enum

VARIABLE = "LATENTMILL_KILL_AT"


class Failpoint(str, Enum):
    """Steps in the order in which a job, a command that edits, and then a purge first reach them.

    Each is named for what has just become durable.
    """

    FILE_WRITTEN = "file-written"
    """A file is complete in the scratch folder, but not under its name yet (local outputs only)."""
    FILE_LINKED = "file-linked"
    """A file has its name, but its folder is not synced yet (local outputs only)."""
    DATASET_RECORDED = "dataset-recorded"
    STRINGS_WRITTEN = "strings-written"
    """The strings of a unit of a text layer are recorded."""
    MAP_WRITTEN = "map-written"
    """A part of the map of a text layer is recorded."""
    PLAN_RECORDED = "plan-recorded"
    ATTEMPT_RECORDED = "attempt-recorded"
    SAMPLE_WRITTEN = "sample-written"
    """A sample is in the tar on the local disk."""
    TAR_WRITTEN = "tar-written"
    """A tar is complete on the local disk."""
    TAR_UPLOADED = "tar-uploaded"
    UNIT_COMMITTED = "unit-committed"
    RUN_RECORDED = "run-recorded"
    INDEX_PART_WRITTEN = "index-part-written"
    INDEX_RANGE_RECORDED = "index-range-recorded"
    """The parts of a range of units are recorded, so that another index takes them over."""
    INDEX_RECORDED = "index-recorded"
    CARD_WRITTEN = "card-written"
    ORPHAN_REMOVED = "orphan-removed"
    ATTEMPT_REMOVED = "attempt-removed"
    SCRATCH_REMOVED = "scratch-removed"
    """A scratch file of a dead writer is gone."""
    SUMMARY_WRITTEN = "summary-written"
    REPORT_WRITTEN = "report-written"
    EDITS_RECORDED = "edits-recorded"
    """A generation of edits is recorded."""
    TAG_RECORDED = "tag-recorded"
    TAG_REMOVED = "tag-removed"
    PURGE_RECORDED = "purge-recorded"
    UNIT_REWRITTEN = "unit-rewritten"
    """A new revision of a unit's metadata names a tar without the purged samples."""
    INDEX_NUMBER_TAKEN = "index-number-taken"
    """No index with rows from before the purge can be recorded any more."""
    INDEX_PURGED = "index-purged"
    """An earlier index has no purged rows any more, or is gone."""
    TEXTS_PURGED = "texts-purged"
    """A file of a text layer has no texts of purged samples any more."""
    CHANGES_RECORDED = "changes-recorded"
    REVISION_REPLACED = "revision-replaced"
    """An earlier revision of a unit's metadata has the content of the newest."""
    FILE_DELETED = "file-deleted"
    PURGE_PROVED = "purge-proved"

    def __str__(self) -> str:
        return self.value


_reached: defaultdict[Failpoint, Iterator[int]] = defaultdict(lambda: itertools.count(1))


def failpoint(step: Failpoint) -> None:
    """Report that ``step`` is done. Kills the process if ``LATENTMILL_KILL_AT`` names this step."""
    name, _, nth = os.environ.get(VARIABLE, "").partition(":")
    if name == step and next(_reached[step]) == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)

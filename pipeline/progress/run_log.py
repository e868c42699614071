"""The record of a job in its output: one JSON line per unit that it worked on."""

from __future__ import annotations

import json
import time

from pipeline.encode.unit_report import UnitReport
from pipeline.environment import user_name
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

REPORTS_PER_PART = 500
"""Number of reports after which a part is written."""
PART_INTERVAL_S = 300.0
"""Age of the last part after which the next is written."""


class RunLog:
    """Writes a job's unit reports to ``runs/<job>-<part>.jsonl`` while the job runs.

    A killed driver loses only the reports of the last part. Reports that are written are no longer held in memory.
    """

    def __init__(self, store: Store, job: str) -> None:
        self._store = store
        self._job = job
        self._by = user_name()
        self._num_parts = 0
        self._lines: list[str] = []
        self._written_s = time.monotonic()

    def add(self, report: UnitReport) -> None:
        """Add a report, and write a part if one is due."""
        self._lines.append(json.dumps(report.to_json() | {"by": self._by}) + "\n")
        if len(self._lines) >= REPORTS_PER_PART or time.monotonic() - self._written_s >= PART_INTERVAL_S:
            self.write()

    def write(self) -> None:
        """Write the reports that no part has yet."""
        if self._lines:
            self._store.put_new(f"runs/{self._job}-{self._num_parts:05d}.jsonl", "".join(self._lines).encode())
            self._lines, self._num_parts = [], self._num_parts + 1
            failpoint(Failpoint.RUN_RECORDED)
        self._written_s = time.monotonic()

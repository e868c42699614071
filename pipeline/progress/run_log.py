"""What became of each unit, kept as a job goes."""

from __future__ import annotations

import json
import time

from pipeline.encode.unit_report import UnitReport
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

REPORTS_PER_PART, PART_EVERY_S = 500, 300.0
"""Reports are written when there are so many, or the last were written so long ago."""


class RunLog:
    """A job's reports as ``runs/<job>-<n>.jsonl``, written in parts as the job goes; what is written is not kept here."""

    def __init__(self, store: Store, job: str) -> None:
        self._store = store
        self._job = job
        self._parts = 0
        self._lines: list[str] = []
        self._written_s = time.monotonic()

    def add(self, report: UnitReport) -> None:
        """One more; writes a part when it is time."""
        self._lines.append(json.dumps(report.to_json()) + "\n")
        if len(self._lines) >= REPORTS_PER_PART or time.monotonic() - self._written_s >= PART_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what has not been written."""
        if self._lines:
            self._store.put_new(f"runs/{self._job}-{self._parts:05d}.jsonl", "".join(self._lines).encode())
            self._lines, self._parts = [], self._parts + 1
            failpoint(Failpoint.RUN_RECORDED)
        self._written_s = time.monotonic()


def job_of(path: str) -> str:
    """Name of the job that a part's path names."""
    return path.removeprefix("runs/").removesuffix(".jsonl").partition("-")[0]

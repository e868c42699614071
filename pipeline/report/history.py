"""History of an output: the unit reports in ``runs/*.jsonl``, summed per job."""

from __future__ import annotations

import contextlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.output.layout.own_files import RUN_PART
from pipeline.storage.store import Store

MAX_SLOWEST = 5
"""Number of slowest units to keep."""
NUM_SPANS = 60
"""Number of spans that a job's throughput is computed for."""
Floats = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class Job:
    """Work of one job. Times are Unix times. Reports of older versions lack end times and activities."""

    name: str
    by: str = ""
    """Who started it: user@host. Older reports lack it."""
    units: int = 0
    samples: int = 0
    units_with_activities: int = 0
    activities: Counter[str] = field(default_factory=Counter)
    """Seconds of those units by activity; the remainder of their time is ``rest``."""
    slowest: list[tuple[float, str, int]] = field(default_factory=list)
    """Heap of (seconds, unit, samples) of the units that took longest."""
    waits_s: dict[str, float] = field(default_factory=dict)
    """Seconds by encoder that its process waited before failed requests were made again. Older reports lack them."""
    timed: list[tuple[float, float, int]] = field(default_factory=list)
    """(start, end, samples) of every unit whose report has an end time."""

    @property
    def started_s(self) -> float | None:
        """Time at which its first unit began; None if no report says so."""
        return min((began for began, _, _ in self.timed), default=None)

    @property
    def waited_s(self) -> float:
        """Seconds of the waits of all encoders."""
        return sum(self.waits_s.values())

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from the start of its first unit to the end of its last; None if no report says so."""
        return max(ended for _, ended, _ in self.timed) - min(b for b, _, _ in self.timed) if self.timed else None

    @property
    def clips_per_s(self) -> float | None:
        """Clips per second over the whole job; None unless every unit has an end time."""
        return self.samples / self.elapsed_s if self.elapsed_s and len(self.timed) == self.units else None

    def throughput(self) -> tuple[Floats, Floats]:
        """Return the edges of ``NUM_SPANS`` equal spans, in seconds since the start, and the samples per second in each.

        The samples of a unit are spread evenly over its time. Shapes: edges [NUM_SPANS + 1], rates [NUM_SPANS].
        Invariant: rates times span lengths add up to all samples.
        Example: 60 samples in 60 s beside 30 samples in the first 30 s give rates of 2.0, then 1.0.
        """
        began, ended, samples = np.array(self.timed, dtype=np.float64).T
        began, ended = began - began.min(), ended - began.min()
        edges = np.linspace(0.0, ended.max(), NUM_SPANS + 1)
        lengths = np.maximum(ended - began, 1e-3)
        done_at_edges = np.array([(np.clip((edge - began) / lengths, 0, 1) * samples).sum() for edge in edges])
        return edges, np.diff(done_at_edges) / np.maximum(np.diff(edges), 1e-9)


def read_history(store: Store) -> list[Job]:
    """Return every job that left records, in the order in which they began.

    A job that was killed lacks the reports of its last minutes.
    """
    jobs: dict[str, Job] = {}
    for path in store.list_files("runs"):
        part = RUN_PART.fullmatch(path)
        if part is None:
            continue
        name = part[1]
        for report in _read_reports(store.get(path)):
            _add_report(jobs.setdefault(name, Job(name=name)), report)
    return sorted(jobs.values(), key=lambda job: (job.started_s or 0.0, job.name))


def _read_reports(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # another program's line
            report = json.loads(line)
            if isinstance(report, dict) and report.get("outcome") in ("committed", "lost"):  # others took no time
                yield report


def _add_report(job: Job, report: dict[str, Any]) -> None:
    """Add a unit; reports of older versions lack ``ended_s`` and ``activities``."""
    wall_s, ended_s, activities = report["wall_s"], report.get("ended_s"), report.get("activities")
    samples = report["samples"] if report["outcome"] == "committed" else 0
    job.by = str(report.get("by", ""))
    job.units += 1
    job.samples += samples
    heapq.heappush(job.slowest, (wall_s, report["unit"], samples))
    if len(job.slowest) > MAX_SLOWEST:
        heapq.heappop(job.slowest)
    encoder = report.get("encoder", "")
    job.waits_s[encoder] = max(job.waits_s.get(encoder, 0.0), report.get("waited_s", 0.0))  # a total that grows
    if ended_s:
        job.timed.append((ended_s - wall_s, ended_s, samples))
    if activities:
        job.units_with_activities += 1
        job.activities.update(activities)
        job.activities["rest"] += max(wall_s - sum(activities.values()), 0.0)

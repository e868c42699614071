"""How an output came about: the reports of its units in ``runs/*.jsonl``, job by job."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.progress.run_log import job_name
from pipeline.storage.store import Store

SLOWEST = 5
POINTS = 60
Floats = npt.NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class Job:
    """What one job did. Times are Unix times; ``timed`` units say when they ended, ``staged`` ones where their time went."""

    name: str
    units: int = 0
    samples: int = 0
    staged: int = 0
    activities: Counter[str] = field(default_factory=Counter)
    """Seconds of the staged units, by stage, with what is left as ``rest``."""
    slowest: list[tuple[float, str, int]] = field(default_factory=list)
    """Seconds, unit and samples of the units that took longest."""
    timed: list[tuple[float, float, int]] = field(default_factory=list)
    """Begin, end and samples of units."""

    @property
    def started_s(self) -> float | None:
        """When its first unit began, if it says."""
        return min((begun for begun, _, _ in self.timed), default=None)

    @property
    def elapsed_s(self) -> float | None:
        """From the begin of its first unit to the end of its last, if it says."""
        return max(ended for _, ended, _ in self.timed) - min(b for b, _, _ in self.timed) if self.timed else None

    @property
    def clips_per_s(self) -> float | None:
        """Over all of its time, if that is known of all its units."""
        return self.samples / self.elapsed_s if self.elapsed_s and len(self.timed) == self.units else None

    def throughput(self) -> tuple[Floats, Floats]:
        """Edges of ``POINTS`` spans, in seconds since the begin, and samples per second in each.

        A unit's samples count as made evenly from its begin to its end.
        """
        begun, ended, samples = np.array(self.timed, dtype=np.float64).T
        begun, ended = begun - begun.min(), ended - begun.min()
        edges = np.linspace(0.0, ended.max(), POINTS + 1)
        lengths = np.maximum(ended - begun, 1e-3)
        made = np.array([(np.clip((edge - begun) / lengths, 0, 1) * samples).sum() for edge in edges])
        return edges, np.diff(made) / np.maximum(np.diff(edges), 1e-9)


def read_history(store: Store) -> list[Job]:
    """Every job that left records, in the order in which they began. A killed one lacks those of its last minutes."""
    jobs: dict[str, Job] = {}
    for path in store.list_files("runs"):
        name = job_name(path)
        for report in _reports(store.get(path)):
            _add(jobs.setdefault(name, Job(name=name)), report)
    return sorted(jobs.values(), key=lambda job: (job.started_s or 0.0, job.name))


def _reports(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        report = json.loads(line)
        if report["outcome"] in ("committed", "lost"):  # the others cost nothing
            yield report


def _add(job: Job, report: dict[str, Any]) -> None:
    """One more unit. Reports of older versions do not say when it ended, nor where its time went."""
    wall_s, ended_s, activities = report["wall_s"], report.get("ended_s"), report.get("activities")
    samples = report["samples"] if report["outcome"] == "committed" else 0
    job.units += 1
    job.samples += samples
    heapq.heappush(job.slowest, (wall_s, report["unit"], samples))
    if len(job.slowest) > SLOWEST:
        heapq.heappop(job.slowest)
    if ended_s:
        job.timed.append((ended_s - wall_s, ended_s, samples))
    if activities:
        job.staged += 1
        job.activities.update(activities)
        job.activities["rest"] += max(wall_s - sum(activities.values()), 0.0)

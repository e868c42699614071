"""What people see: progress while a job runs, and the summary when it ends."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.advice import advice
from pipeline.encode import Report
from pipeline.index import Index
from pipeline.recipe import Run
from pipeline.steps import Step, reached
from pipeline.store import Store
from pipeline.tables import read_parquet

LINE_EVERY_S = 2.0
REJECTS_JUDGED_AFTER = 200
EXAMPLES = 8


class Progress:
    """Counts what the units of this job report, and says so now and then."""

    def __init__(self, run: Run, num_todo: int, say: Callable[[str], None]) -> None:
        self._max_rejects = run.max_rejects
        self._num_todo = num_todo
        self._say = say
        self._started_s = self._said_s = time.monotonic()
        self.reports: list[Report] = []
        self.windows = self.samples = self.frames = self.rejects = 0

    def add(self, report: Report) -> None:
        """One more unit is done."""
        self.reports.append(report)
        self.windows += report.windows
        self.samples += report.samples
        self.frames += report.frames
        self.rejects += sum(report.rejects.values())
        now_s = time.monotonic()
        done = len(self.reports)
        if now_s - self._said_s < LINE_EVERY_S and done not in (1, self._num_todo):
            return
        self._said_s = now_s
        left_s = self.elapsed_s / done * (self._num_todo - done)
        self._say(
            f"{done}/{self._num_todo} units  {self.samples} clips ({self.samples / self.elapsed_s:.1f}/s)  "
            f"{self.rejects} rejects  {_duration(left_s)} left"
        )

    @property
    def elapsed_s(self) -> float:
        """Since the job began to encode."""
        return max(time.monotonic() - self._started_s, 1e-3)

    def too_many_rejects(self) -> bool:
        """Whether this job should stop rather than reject everything."""
        return too_many_rejects(self.rejects, self.windows, self._max_rejects)

    def save(self, store: Store, job: str) -> None:
        """Keep this job's reports as ``runs/<job>.jsonl``."""
        if self.reports:
            lines = [json.dumps(dataclasses.asdict(report)) + "\n" for report in self.reports]
            store.put_new(f"runs/{job}.jsonl", "".join(lines).encode())
            reached(Step.RUN_RECORDED)


def too_many_rejects(rejects: int, windows: int, max_rejects: float) -> bool:
    """Whether the share of rejects is above the limit; not judged before a few hundred windows."""
    return windows >= REJECTS_JUDGED_AFTER and rejects / windows > max_rejects


@dataclass(kw_only=True, slots=True)
class Summary:
    """What an output holds after a job, or why the job stopped."""

    output: str
    recipe: str
    exit_code: int
    finished: bool
    units: int
    units_done_now: int
    elapsed_s: float
    samples: int = 0
    frames: int = 0
    size_bytes: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    skips: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    reject_examples: list[str] = field(default_factory=list)

    @property
    def windows(self) -> int:
        """Planned windows accounted for."""
        return self.samples + sum(self.skips.values()) + sum(self.rejects.values())

    def save(self, store: Store) -> None:
        """Write ``summary.json``, over that of an earlier job."""
        store.put("summary.json", json.dumps(dataclasses.asdict(self), indent=1).encode())
        reached(Step.SUMMARY_WRITTEN)

    def __str__(self) -> str:
        """A table for people."""
        state = (
            "finished" if self.finished else "stopped: too many rejects; run again with a higher --max-rejects to go on"
        )
        lines = [
            f"{self.output}  {state}",
            f"  units    {self.units} ({self.units_done_now} in this run, {_duration(self.elapsed_s)})",
            f"  windows  {self.windows} = {self.samples} samples + {sum(self.skips.values())} skips "
            f"+ {sum(self.rejects.values())} rejects",
            f"  latents  {self.frames} frames, {self.size_bytes / 1e6:.1f} MB of shards",
        ]
        for title, counts in (("buckets", self.buckets), ("skips", self.skips), ("rejects", self.rejects)):
            for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
                lines.append(f"  {title:<8} {count:>8}  {name}")
                title = ""
        lines += [f"  {name}: {advice(name)}" for name in sorted(self.rejects)]
        lines += [f"  e.g.     {example}" for example in self.reject_examples]
        return "\n".join(lines)


def summarize(store: Store, index: Index, run: Run, *, recipe: str, units: int, progress: Progress) -> Summary:
    """The summary of a finished output, from its index."""
    frames, buckets = 0, Counter[str]()
    for table in _tables(store, index.samples, ["bucket", "num_frames"]):
        frames += pc.sum(table["num_frames"]).as_py()
        buckets += _counted(table["bucket"])
    skips, rejects, examples = Counter[str](), Counter[str](), list[str]()
    for table in _tables(store, index.skips, ["skip_reason"]):
        skips += _counted(table["skip_reason"])
    for table in _tables(store, index.rejects, ["key", "reject_stage", "reject_kind", "reject_message"]):
        rejects += _counted(pc.binary_join_element_wise(table["reject_stage"], table["reject_kind"], "/"))
        some = table.slice(0, EXAMPLES - len(examples)).to_pylist()
        examples += [f"{row['key']}: {row['reject_message']}"[:160] for row in some]
    shards = store.list_files("shards")
    summary = Summary(
        output=store.url,
        recipe=recipe,
        exit_code=0,
        finished=True,
        units=units,
        units_done_now=len(progress.reports),
        elapsed_s=progress.elapsed_s,
        samples=index.num_samples,
        frames=frames,
        size_bytes=sum(shards.values()),
        buckets=dict(buckets),
        skips=dict(skips),
        rejects=dict(rejects),
        reject_examples=examples,
    )
    if too_many_rejects(index.num_rejects, summary.windows, run.max_rejects):
        summary.exit_code = 3
    return summary


def stopped(store: Store, *, recipe: str, units: int, progress: Progress) -> Summary:
    """The summary of a job that found too many rejects; counts are this job's."""
    summary = Summary(
        output=store.url,
        recipe=recipe,
        exit_code=3,
        finished=False,
        units=units,
        units_done_now=len(progress.reports),
        elapsed_s=progress.elapsed_s,
        samples=progress.samples,
        frames=progress.frames,
        size_bytes=sum(report.size_bytes for report in progress.reports),
    )
    for report in progress.reports:
        summary.skips = dict(Counter(summary.skips) + Counter(report.skips))
        summary.rejects = dict(Counter(summary.rejects) + Counter(report.rejects))
    return summary


def _tables(store: Store, parts: list[str], names: list[str]) -> Iterator[pa.Table]:
    return (read_parquet(store.get(part), names) for part in parts)


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""What an output holds when a job ends, and why a job stopped."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.counts import Counts
from pipeline.output.index import Index
from pipeline.output.schema import REJECT_COLUMNS, reject_names
from pipeline.progress.advice import advice, waiting_advice
from pipeline.progress.formatting import byte_size, elapsed
from pipeline.progress.progress import Progress, too_many_rejects
from pipeline.recipe import Run
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, value_counts
from pipeline.storage.store import Store

EXAMPLES = 8


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
    counts: Counts = field(default_factory=Counts)
    buckets: Counter[str] = field(default_factory=Counter)
    reject_examples: list[str] = field(default_factory=list)
    encoder_s: float = 0.0
    """Of this run: seconds that its encoders were ready in, all together,"""
    idle_s: dict[str, float] = field(default_factory=dict)
    """and what of it their devices were idle, by cause: see ``pipeline.encode.utilization``."""

    def save(self, store: Store) -> None:
        """Write ``summary.json``, over that of an earlier job. The fields of ``counts`` stand beside the others."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "counts"}
        store.put("summary.json", json.dumps(values | self.counts.to_json(), indent=1).encode())
        failpoint(Failpoint.SUMMARY_WRITTEN)

    def __str__(self) -> str:
        """A table for people."""
        state = (
            "finished" if self.finished else "stopped: too many rejects; run again with a higher --max-rejects to go on"
        )
        counts = self.counts
        lines = [
            f"{self.output}  {state}",
            f"  units    {self.units} ({self.units_done_now} in this run, {elapsed(self.elapsed_s)})",
            f"  windows  {counts.windows} = {counts.samples} samples + {counts.skips.total()} skips "
            f"+ {counts.rejects.total()} rejects",
            f"  latents  {counts.frames} frames, {byte_size(counts.size_bytes)} of shards",
        ]
        for title, numbers in (("buckets", self.buckets), ("skips", counts.skips), ("rejects", counts.rejects)):
            for name, count in sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0])):
                lines.append(f"  {title:<8} {count:>8}  {name}")
                title = ""
        lines += [f"  {name}: {advice(name)}" for name in sorted(counts.rejects)]
        if waited := waiting_advice(self.encoder_s, self.idle_s):
            lines.append(f"  {waited}")
        lines += [f"  e.g.     {example}" for example in self.reject_examples]
        return "\n".join(lines)


def summarize(store: Store, index: Index, run: Run, *, recipe: str, units: int, progress: Progress) -> Summary:
    """The summary of a finished output, from its index."""
    summary = _of_run(store, recipe, units, progress)
    summary.finished, summary.exit_code = True, 0
    counts = summary.counts = Counts(samples=index.num_samples, size_bytes=sum(store.list_files("shards").values()))
    for table in _tables(store, index.samples, ["bucket", "num_frames"]):
        counts.frames += pc.sum(table["num_frames"]).as_py()
        summary.buckets.update(value_counts(table["bucket"]))
    for table in _tables(store, index.skips, ["skip_reason"]):
        counts.skips.update(value_counts(table["skip_reason"]))
    for table in _tables(store, index.rejects, ["key", *REJECT_COLUMNS, "reject_message"]):
        counts.rejects.update(value_counts(reject_names(table)))
        some = table.slice(0, EXAMPLES - len(summary.reject_examples)).to_pylist()
        summary.reject_examples += [f"{row['key']}: {row['reject_message']}"[:160] for row in some]
    if too_many_rejects(index.num_rejects, counts.windows, run.max_rejects):
        summary.exit_code = 3
    return summary


def stopped(store: Store, *, recipe: str, units: int, progress: Progress) -> Summary:
    """The summary of a job that found too many rejects; counts are this job's."""
    summary = _of_run(store, recipe, units, progress)
    summary.counts = progress.counts
    return summary


def _of_run(store: Store, recipe: str, units: int, progress: Progress) -> Summary:
    """What is said of a run however it ended; until more is known, as stopped."""
    encoder_s, idle_s = progress.waiting()
    return Summary(
        output=store.url,
        recipe=recipe,
        exit_code=3,
        finished=False,
        units=units,
        units_done_now=progress.units,
        elapsed_s=progress.elapsed_s,
        encoder_s=encoder_s,
        idle_s=idle_s,
    )


def _tables(store: Store, parts: list[str], names: list[str]) -> Iterator[pa.Table]:
    return (read_parquet(store.get(part), names) for part in parts)

"""Summary of a job: the contents of its output, and what to do next."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.counts import Counts
from pipeline.output.dataset import recorded_environment
from pipeline.output.edits.edits import REMOVED, newest_edits
from pipeline.output.index import Index
from pipeline.output.layout.own_files import SHARD
from pipeline.output.schema import REJECT_COLUMNS, bucket_names, reject_names
from pipeline.progress.activities import idle_advice
from pipeline.progress.advice import reject_advice, skip_meaning
from pipeline.progress.captions import count_captions, metadata_hints, metadata_note, no_captions_note
from pipeline.progress.formatting import byte_size, elapsed, number
from pipeline.progress.progress import Progress
from pipeline.progress.reject_limit import failed_windows, too_many_rejects
from pipeline.recipe import Recipe, Run
from pipeline.sources.units import Source
from pipeline.storage.concurrency import LARGE_REQUESTS, map_concurrently
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, value_counts
from pipeline.storage.store import Store
from pipeline.visible import visible

MAX_EXAMPLES = 8
"""Number of rejects whose messages are listed."""
MAX_EXAMPLE_CHARACTERS = 160
OUTCOMES_OF_GROUP = ("samples", "skips", "rejects")
MAX_METADATA_ROWS = 20
"""Number of samples whose metadata is searched for text, if there are no captions."""


@dataclass(kw_only=True, slots=True)
class Summary:
    """Contents of an output after a job, or the counts of a job that stopped because of rejects."""

    output: str
    recipe: str
    exit_code: int
    finished: bool
    units: int
    units_done_now: int
    elapsed_s: float
    remainder: str = "skip"
    """The recipe's value of that name."""
    counts: Counts = field(default_factory=Counts)
    buckets: Counter[str] = field(default_factory=Counter)
    """Number of samples by bucket."""
    groups: dict[str, Counter[str]] = field(default_factory=dict)
    """Number of ``samples``, ``skips`` and ``rejects`` by group of buckets; empty without groups.

    Rejects of items whose windows are not known have no group.
    """
    devices: dict[str, int] = field(default_factory=dict)
    """Number of samples by the device that encoded them, with those that are removed but not purged."""
    reject_examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about captions and metadata that people should know."""
    encoder_s: float = 0.0
    """Seconds since each encoder of this run was ready, summed over encoders."""
    idle_s: dict[str, float] = field(default_factory=dict)
    """Seconds of ``encoder_s`` in which the device was idle, by cause: see ``pipeline.encode.utilization``."""

    waited_s: float = 0.0
    """Seconds that encoders of this run waited before they made failed requests again, summed over their threads."""

    @property
    def _state(self) -> str:
        if not self.finished:
            return "stopped: too many rejects; run again with a higher --max-rejects to continue"
        if self.counts.windows and self.counts.rejects.total() == self.counts.windows:
            return "every window was rejected: there are no samples"
        return "finished, with more rejects than --max-rejects allows" if self.exit_code else "finished"

    def count_groups(self, table: pa.Table, outcome: str) -> None:
        """Add rows of the index, which all have this outcome, to the counts of their groups of buckets."""
        groups = value_counts(table["group"]) if "group" in table.column_names else {}
        for name, count in groups.items():
            self.groups.setdefault(name, Counter())[outcome] += count

    def count_removed(self, samples: pa.Table, left: pa.Table) -> None:
        """Count the rows of samples that are not ``left``, because they are removed, as rejects."""
        removed = len(samples) - len(left)
        if removed:
            self.counts.samples -= removed
            self.counts.rejects[REMOVED.name] += removed

    def save(self, store: Store) -> None:
        """Write ``summary.json``; replaces that of an earlier job. The fields of ``counts`` stand beside the others."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "counts"}
        store.put("summary.json", json.dumps(values | self.counts.to_json(), indent=1).encode())
        failpoint(Failpoint.SUMMARY_WRITTEN)

    def __str__(self) -> str:
        """Format the summary as a table for people."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of the table, without invisible characters."""
        counts = self.counts
        lines = [
            f"{self.output}  {self._state}",
            f"  units    {self.units} ({self.units_done_now} in this run, {elapsed(self.elapsed_s)})",
            f"  windows  {number(counts.windows)} = {number(counts.samples, 'sample')} + "
            f"{number(counts.skips.total(), 'skip')} + {number(counts.rejects.total(), 'reject')}",
            f"  latents  {number(counts.frames, 'frame')}, {byte_size(counts.size_bytes)} of shards",
            f"  captions {number(counts.captions)} of {number(counts.samples)}",
        ]
        for name, numbers in sorted(self.groups.items()):
            outcomes = (number(numbers[outcome], outcome.removesuffix("s")) for outcome in OUTCOMES_OF_GROUP)
            lines.append(f"  group    {name}: {', '.join(outcomes)}")
        for title, numbers in (("buckets", self.buckets), ("skips", counts.skips), ("rejects", counts.rejects)):
            for name, count in sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0])):
                lines.append(f"  {title:<8} {count:>8}  {name}")
                title = ""
        if len(self.devices) > 1:
            lines += [f"  device   {count:>8}  samples on {device}" for device, count in self.devices.items()]
            if removed := sum(self.devices.values()) - counts.samples:
                lines.append(f"  {removed} of these samples are removed")
        lines += [f"  {reason}: {skip_meaning(reason, self.remainder)}" for reason in sorted(counts.skips)]
        lines += [f"  {name}: {reject_advice(name)}" for name in sorted(counts.rejects)]
        if advice := idle_advice(self.encoder_s, self.idle_s):
            lines.append(f"  {advice}")
        if self.waited_s >= 1:
            lines.append(
                f"  waits    {elapsed(self.waited_s)} before failed requests to stores and servers were made again"
            )
        lines += [f"  e.g.     {example}" for example in self.reject_examples]
        lines += [f"  note     {note}" for note in self.notes]
        return [visible(line) for line in lines]


def summarize(
    store: Store, index: Index, run: Run, sources: Sequence[Source], *, recipe: Recipe, units: int, progress: Progress
) -> Summary:
    """Return the summary of a finished output, from its index. ``sources`` are searched for captions if there are none."""
    summary = _run_summary(store, recipe, units, progress)
    summary.finished, summary.exit_code = True, 0
    counts = summary.counts = Counts(samples=index.num_samples, size_bytes=_shard_bytes(store))
    edits = newest_edits(store)
    summary.devices = index.totals.samples_by_device(recorded_environment(store) or {})
    notes: Counter[str] = Counter()
    columns = ["bucket", "group", "num_frames", "caption", "note", *edits.columns]
    for rows in _read_tables(store, index.samples, columns):
        table = edits.without_removed(rows)
        summary.count_removed(rows, table)
        counts.frames += pc.sum(table["num_frames"]).as_py() or 0
        counts.captions += count_captions(table["caption"])
        summary.buckets.update(value_counts(bucket_names(table)))
        summary.count_groups(table, "samples")
        notes.update(value_counts(table["note"].drop_null()))
    if counts.samples and not counts.captions:
        summary.notes.append(no_captions_note(sources, metadata_hints(_some_metadata(store, index))))
    summary.notes += [metadata_note(name, count) for name, count in sorted(notes.items())]
    for table in _read_tables(store, index.skips, ["skip_reason", "group"]):
        counts.skips.update(value_counts(table["skip_reason"]))
        summary.count_groups(table, "skips")
    for table in _read_tables(store, index.rejects, ["key", "group", *REJECT_COLUMNS, "reject_message"]):
        summary.count_groups(table, "rejects")
        counts.rejects.update(value_counts(reject_names(table)))
        summary.reject_examples += example_rejects(table, summary.reject_examples)
    if too_many_rejects(failed_windows(counts), counts.windows, run.max_rejects, final=True):
        summary.exit_code = 3
    return summary


def example_rejects(rejects: pa.Table, examples: Sequence[str]) -> list[str]:
    """Return further examples of rejects, as far as there is room beside the others."""
    rows = rejects.select(["key", "reject_message"]).slice(0, MAX_EXAMPLES - len(examples)).to_pylist()
    return [f"{row['key']}: {row['reject_message']}"[:MAX_EXAMPLE_CHARACTERS] for row in rows]


def summarize_stopped(store: Store, *, recipe: Recipe, units: int, progress: Progress) -> Summary:
    """Return the summary of a job that stopped because of too many rejects.

    It counts this job's units only, those included that were in flight.
    """
    summary = _run_summary(store, recipe, units, progress)
    summary.counts = progress.counts_so_far()
    return summary


def _run_summary(store: Store, recipe: Recipe, units: int, progress: Progress) -> Summary:
    """Return the fields that every summary of a run has; the rest stays as for a job that stopped."""
    encoder_s, idle_s = progress.idle_time()
    return Summary(
        output=store.url,
        recipe=recipe.fingerprint,
        remainder=recipe.remainder,
        exit_code=3,
        finished=False,
        units=units,
        units_done_now=progress.units,
        elapsed_s=progress.elapsed_s,
        encoder_s=encoder_s,
        waited_s=progress.waited_s(),
        idle_s=idle_s,
    )


def _shard_bytes(store: Store) -> int:
    return sum(size_bytes for path, size_bytes in store.list_files("shards").items() if SHARD.fullmatch(path))


def _some_metadata(store: Store, index: Index) -> list[dict[str, Any]]:
    """Return the user columns of a few samples."""
    table = read_parquet(store.get(index.samples[0])).slice(0, MAX_METADATA_ROWS)
    rows: list[dict[str, Any]] = table.select([n for n in table.column_names if n.startswith("meta")]).to_pylist()
    return rows


def _read_tables(store: Store, parts: list[str], names: list[str]) -> Iterator[pa.Table]:
    return (read_parquet(content, names) for content in map_concurrently(store.get, parts, LARGE_REQUESTS))

"""What an output holds, counted: from its index, or from the metadata of its units where there is none yet.

Tables are read one by one and only their sums are kept, so memory does not grow with the output.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.dataset import Dataset, require_dataset
from pipeline.output.index import Index, OutputTotals, newest_index
from pipeline.output.plan import committed_units, read_plan
from pipeline.output.schema import reject_names
from pipeline.output.unit_metadata import read_unit_metadata, unit_metadata_facts
from pipeline.report.latent_stats import LatentStatistics, latent_statistics
from pipeline.sources.units import Unit
from pipeline.storage.parquet import parquet_batches, value_counts
from pipeline.storage.store import Store

EXAMPLES = 5
"""Of each kind of reject and skip."""
ROWS_FOR_EXAMPLES = 100
"""Of one table and kind that are looked at: many may be windows of one item."""
DURATION_EDGES_S = (0, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, float("inf"))
ROWS_AT_ONCE = 1 << 17
COLUMNS = (
    *("id", "source", "key", "window", "shard", "skip_reason", "reject_stage", "reject_reason", "reject_message"),
    *("bucket", "num_frames", "height", "width", "fps", "start_s", "end_s", "nbytes", "encode_path"),
    *("latent_c", "latent_t", "latent_h", "latent_w"),
    *("src_width", "src_height", "src_num_frames", "src_duration_s", "src_codec"),
)

Counts = npt.NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class BucketCount:
    """What a bucket holds."""

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    size_bytes: int = 0
    pixel_bytes: int = 0
    """Of its frames as raw RGB."""
    latent_shape: tuple[int, ...] = ()
    """C, t, h, w."""


@dataclass(kw_only=True, slots=True)
class SourceCount:
    """What became of a source's windows."""

    num_items: int = 0
    clips: int = 0
    skips: int = 0
    rejects: int = 0


@dataclass(kw_only=True, slots=True)
class Group:
    """Windows with one reason not to be samples."""

    count: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    """Keys of a few items, and what is said of them."""


@dataclass(kw_only=True, slots=True)
class DatasetStats:
    """Everything that can be said of an output without reading a latent."""

    url: str
    dataset: Dataset
    units: int
    committed: int
    totals: OutputTotals
    latents: LatentStatistics | None = None
    buckets: defaultdict[str, BucketCount] = field(default_factory=lambda: defaultdict(BucketCount))
    sources: defaultdict[str, SourceCount] = field(default_factory=lambda: defaultdict(SourceCount))
    skips: defaultdict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    rejects: defaultdict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    """By ``stage/reason``."""
    codecs: Counter[str] = field(default_factory=Counter)
    """Items by the codec of their video."""
    encode_paths: Counter[str] = field(default_factory=Counter)
    clip_durations: Counts = field(default_factory=lambda: np.zeros(len(DURATION_EDGES_S) - 1, dtype=np.int64))
    item_durations: Counts = field(default_factory=lambda: np.zeros(len(DURATION_EDGES_S) - 1, dtype=np.int64))

    @property
    def finished(self) -> bool:
        """Whether every planned unit is committed."""
        return self.committed == self.units

    @property
    def total(self) -> BucketCount:
        """All buckets together."""
        counts = self.buckets.values()
        return BucketCount(
            clips=sum(b.clips for b in counts),
            frames=sum(b.frames for b in counts),
            seconds=sum(b.seconds for b in counts),
            size_bytes=sum(b.size_bytes for b in counts),
            pixel_bytes=sum(b.pixel_bytes for b in counts),
        )


def find(store: Store) -> DatasetStats:
    """Count an output. ConfigError if there is none."""
    dataset, plan = require_dataset(store), read_plan(store)
    names = committed_units(store)
    committed = [unit for unit in plan.units if unit.name in names]
    index = newest_index(store)
    later = [unit for unit in reversed(committed) if index is None or unit.generation >= index.plan_generations]
    totals = OutputTotals() if index is None else index.totals
    findings = DatasetStats(
        url=store.url, dataset=dataset, units=len(plan.units), committed=len(committed), totals=totals
    )
    for table in _tables(store, later, index, totals):
        _add(findings, table)
    findings.latents = latent_statistics(totals)
    return findings


def _tables(store: Store, later: list[Unit], index: Index | None, totals: OutputTotals) -> Iterator[pa.Table]:
    """The rows of the index and of units that came later, without the rejects that a later unit has tried again.

    The facts of these units are added to ``totals``.
    """
    again = pa.array([], pa.string())
    for unit, metadata in read_unit_metadata(store, later):
        totals.add(unit_metadata_facts(metadata))
        table = metadata.select(list(COLUMNS))
        yield _without(table, again)
        if unit.retries:
            again = pa.concat_arrays([again, table["id"].combine_chunks()])
    for part in [] if index is None else [*index.samples, *index.skips, *index.rejects]:
        for table in parquet_batches(store.get(part), list(COLUMNS), ROWS_AT_ONCE):
            yield _without(table, again)


def _without(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["id"], ids))) if len(ids) else table


def _add(findings: DatasetStats, table: pa.Table) -> None:
    samples = table.filter(pc.field("shard").is_valid())
    first = table.filter(pc.field("window") == 0)  # one row of each item
    _add_buckets(findings.buckets, samples)
    _add_sources(findings.sources, table, first)
    _add_groups(findings.skips, table.filter(pc.field("skip_reason").is_valid()), "skip_reason", _video)
    rejects = table.filter(pc.field("reject_reason").is_valid())
    _add_groups(
        findings.rejects,
        rejects.append_column("name", reject_names(rejects)),
        "name",
        lambda row: row["reject_message"],
    )
    findings.codecs.update(value_counts(first["src_codec"]))
    findings.encode_paths.update(value_counts(samples["encode_path"]))
    findings.clip_durations += _histogram(_seconds(samples))
    findings.item_durations += _histogram(first["src_duration_s"])


def _add_buckets(buckets: dict[str, BucketCount], samples: pa.Table) -> None:
    pixels = pc.multiply(pc.multiply(samples["height"].cast(pa.int64()), samples["width"]), samples["num_frames"])
    samples = samples.append_column("pixel_bytes", pc.multiply(pixels, 3)).append_column("seconds", _seconds(samples))
    sums = ("num_frames", "nbytes", "pixel_bytes", "seconds")
    shape = ("latent_c", "latent_t", "latent_h", "latent_w")
    columns = [("id", "count"), *((name, "sum") for name in sums), *((name, "min") for name in shape)]
    for row in samples.group_by("bucket").aggregate(columns).to_pylist():
        bucket = buckets[row["bucket"]]
        bucket.clips += row["id_count"]
        bucket.frames += row["num_frames_sum"]
        bucket.size_bytes += row["nbytes_sum"]
        bucket.pixel_bytes += row["pixel_bytes_sum"]
        bucket.seconds += row["seconds_sum"] or 0.0
        bucket.latent_shape = tuple(row[f"{name}_min"] for name in shape)


def _add_sources(sources: dict[str, SourceCount], table: pa.Table, first: pa.Table) -> None:
    columns = [(name, "count") for name in ("shard", "skip_reason", "reject_reason")]
    for row in table.group_by("source").aggregate(columns).to_pylist():
        source = sources[row["source"]]
        source.clips += row["shard_count"]
        source.skips += row["skip_reason_count"]
        source.rejects += row["reject_reason_count"]
    for name, count in value_counts(first["source"]).items():
        sources[name].num_items += count


def _add_groups(groups: dict[str, Group], rows: pa.Table, by: str, message: Callable[[dict[str, Any]], str]) -> None:
    for name, count in value_counts(rows[by]).items():
        group = groups[name]
        group.count += count
        if len(group.examples) < EXAMPLES:
            for row in rows.filter(pc.field(by) == name).slice(0, ROWS_FOR_EXAMPLES).to_pylist():
                group.examples.setdefault(row["key"], message(row))
            group.examples = dict(itertools.islice(group.examples.items(), EXAMPLES))


def _video(row: dict[str, Any]) -> str:
    return f"{row['src_width']}x{row['src_height']} pixels, {row['src_num_frames']} frames"


def _seconds(samples: pa.Table) -> pa.ChunkedArray:
    """Lengths of clips; null for images."""
    lengths = pc.subtract(samples["end_s"], samples["start_s"])
    return pc.if_else(samples["fps"].is_valid(), lengths, pa.scalar(None, pa.float64()))


def _histogram(seconds: pa.ChunkedArray) -> Counts:
    return np.histogram(seconds.drop_null().to_numpy(), DURATION_EDGES_S)[0]

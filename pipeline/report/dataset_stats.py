"""Statistics of an output, from its index and from the metadata of units that the index does not cover yet.

Tables are read one by one and only sums are kept, so memory use does not grow with the output.
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

from pipeline.output.counts import Int8Errors
from pipeline.output.dataset import Dataset, require_dataset
from pipeline.output.edits.edits import Edits, newest_edits
from pipeline.output.index import Index, OutputTotals, newest_index
from pipeline.output.plan import committed_units, read_plan
from pipeline.output.schema import INT8_ERRORS, reject_names
from pipeline.output.unit_metadata import read_unit_metadata, unit_metadata_facts
from pipeline.report.bucket_stats import BucketStats, GroupStats, add_buckets, add_groups, clip_lengths
from pipeline.report.latent_stats import LatentStatistics, latent_statistics
from pipeline.report.scene_stats import SCENE_COLUMNS, SceneStats
from pipeline.sources.units import Unit
from pipeline.storage.parquet import parquet_batches, value_counts
from pipeline.storage.store import Store

MAX_EXAMPLES = 5
"""Number of example items per reason of a reject or skip."""
MAX_EXAMPLE_ROWS = 100
"""Number of rows per table and reason to search for examples: many rows may be windows of one item."""
DURATION_EDGES_S = (0, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, float("inf"))
BATCH_ROWS = 1 << 17
"""Number of rows of an index part that are read at once."""
COLUMNS = (
    *(
        "id",
        "source",
        "key",
        "caption",
        "note",
        "window",
        "shard",
        "skip_reason",
        "reject_stage",
        "reject_reason",
        "reject_message",
    ),
    *("bucket", "group", "num_frames", "height", "width", "fps", "start_s", "end_s", "nbytes", "encode_path"),
    *("latent_c", "latent_t", "latent_h", "latent_w"),
    *("src_width", "src_height", "src_num_frames", "src_duration_s", "src_codec"),
    *SCENE_COLUMNS,
)

BinCounts = npt.NDArray[np.int64]
"""Number of clips or items in each bin of ``DURATION_EDGES_S``."""


@dataclass(kw_only=True, slots=True)
class SourceStats:
    """Outcomes of the windows of one source."""

    num_items: int = 0
    clips: int = 0
    captions: int = 0
    """Number of clips with a caption."""
    skips: int = 0
    rejects: int = 0


@dataclass(kw_only=True, slots=True)
class ReasonStats:
    """Windows that were skipped or rejected for one reason."""

    count: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    """Message by key, for a few items."""


@dataclass(kw_only=True, slots=True)
class DatasetStats:
    """Everything that the report knows about an output; no latent is read for it."""

    url: str
    dataset: Dataset
    num_units: int
    """Number of planned units."""
    num_committed: int
    totals: OutputTotals
    latents: LatentStatistics | None = None
    buckets: defaultdict[str, BucketStats] = field(default_factory=lambda: defaultdict(BucketStats))
    """Contents of buckets by ``str(Bucket)``, which begins with the group."""
    groups: defaultdict[str, GroupStats] = field(default_factory=lambda: defaultdict(GroupStats))
    """Outcomes by group of buckets; empty without groups."""
    sources: defaultdict[str, SourceStats] = field(default_factory=lambda: defaultdict(SourceStats))
    skips: defaultdict[str, ReasonStats] = field(default_factory=lambda: defaultdict(ReasonStats))
    rejects: defaultdict[str, ReasonStats] = field(default_factory=lambda: defaultdict(ReasonStats))
    """Rejects by ``stage/reason``."""
    scenes: SceneStats = field(default_factory=SceneStats)
    int8_errors: Int8Errors | None = None
    """Errors of the stored latents, in outputs of type int8."""
    codecs: Counter[str] = field(default_factory=Counter)
    """Number of items by the codec of their video."""
    notes: Counter[str] = field(default_factory=Counter)
    """Number of clips by what the column ``note`` says."""
    encode_paths: Counter[str] = field(default_factory=Counter)
    """Number of samples by how their micro-batch was encoded, for example whole or in tiles."""
    clip_durations: BinCounts = field(default_factory=lambda: np.zeros(len(DURATION_EDGES_S) - 1, dtype=np.int64))
    item_durations: BinCounts = field(default_factory=lambda: np.zeros(len(DURATION_EDGES_S) - 1, dtype=np.int64))

    @property
    def finished(self) -> bool:
        """True if every planned unit is committed."""
        return self.num_committed == self.num_units

    @property
    def num_items(self) -> int:
        """Number of items whose unit is committed."""
        return sum(source.num_items for source in self.sources.values())

    @property
    def num_captions(self) -> int:
        """Number of clips with a caption."""
        return sum(source.captions for source in self.sources.values())

    @property
    def num_skips(self) -> int:
        """Number of skipped windows."""
        return sum(reason.count for reason in self.skips.values())

    @property
    def num_rejects(self) -> int:
        """Number of rejected windows; an item that is rejected as a whole counts as one."""
        return sum(reason.count for reason in self.rejects.values())

    @property
    def num_removed(self) -> int:
        """Number of samples that are removed but not purged. Only ``totals`` and ``latents`` count them."""
        return self.totals.num_samples - self.total.clips

    @property
    def num_windows(self) -> int:
        """Number of windows with an outcome."""
        return self.total.clips + self.num_skips + self.num_rejects

    @property
    def total(self) -> BucketStats:
        """Sums over all buckets."""
        counts = self.buckets.values()
        return BucketStats(
            clips=sum(b.clips for b in counts),
            frames=sum(b.frames for b in counts),
            seconds=sum(b.seconds for b in counts),
            size_bytes=sum(b.size_bytes for b in counts),
            pixel_bytes=sum(b.pixel_bytes for b in counts),
        )


def collect_stats(store: Store) -> DatasetStats:
    """Collect the statistics of an output. Raises ConfigError if there is none at this URL."""
    dataset, plan = require_dataset(store), read_plan(store)
    names = committed_units(store)
    committed = [unit for unit in plan.units if unit.name in names]
    index = newest_index(store)
    newer = [unit for unit in reversed(committed) if index is None or unit.generation >= index.plan_generations]
    totals = OutputTotals() if index is None else index.totals
    stats = DatasetStats(
        url=store.url, dataset=dataset, num_units=len(plan.units), num_committed=len(committed), totals=totals
    )
    edits = newest_edits(store)
    columns = list(COLUMNS)
    if dataset.recipe.dtype == "int8":
        stats.int8_errors, columns = Int8Errors(), [*columns, *INT8_ERRORS]
    for table in _read_tables(store, newer, index, totals, edits, columns):
        _add_rows(stats, table)
    stats.latents = latent_statistics(totals)
    return stats


def _read_tables(
    store: Store,
    newer: list[Unit],
    index: Index | None,
    totals: OutputTotals,
    edits: Edits,
    columns: list[str],
) -> Iterator[pa.Table]:
    """Yield the rows of units that are newer than the index, newest unit first, then those of the index.

    Rejects that a newer unit has tried again are left out, and removed samples are rejects. Adds the facts of the newer
    units' metadata to ``totals``.
    """
    retried_ids = pa.array([], pa.string())
    columns = list(dict.fromkeys([*COLUMNS, *edits.columns]))
    for unit, metadata in read_unit_metadata(store, newer):
        totals.add(unit_metadata_facts(metadata))
        table = _with_group(metadata).select(columns)
        yield edits.as_rejects(_drop_ids(table, retried_ids))
        if unit.retries:
            retried_ids = pa.concat_arrays([retried_ids, table["id"].combine_chunks()])
    for part in [] if index is None else [*index.samples, *index.skips, *index.rejects]:
        for table in parquet_batches(store.get(part), columns, BATCH_ROWS):
            yield edits.as_rejects(_drop_ids(_with_group(table), retried_ids))


def _with_group(table: pa.Table) -> pa.Table:
    """Add the column ``group`` to a table of a program that did not know groups of buckets."""
    if "group" in table.column_names:
        return table
    return table.append_column("group", pa.nulls(len(table), pa.string()))


def _drop_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["id"], ids))) if len(ids) else table


def _add_rows(stats: DatasetStats, table: pa.Table) -> None:
    """Add a table with one row per window. Every item has exactly one row whose window is 0 in each group of buckets.

    An item whose windows are not known has one row without a group.
    """
    samples = table.filter(pc.field("shard").is_valid())
    first_windows = table.filter(pc.field("window") == 0)
    items = first_windows
    if groups := stats.dataset.recipe.group_names:
        items = first_windows.filter(pc.field("group").is_null() | (pc.field("group") == groups[0]))
        add_groups(stats.groups, table)
    add_buckets(stats.buckets, samples)
    _add_sources(stats.sources, table, items)
    for name, count in value_counts(samples.filter(pc.field("caption") != "")["source"]).items():
        stats.sources[name].captions += count
    skips = table.filter(pc.field("skip_reason").is_valid())
    _add_reasons(stats.skips, skips, "skip_reason", _describe_video)
    stats.scenes.add(samples, skips, first_windows)
    rejects = table.filter(pc.field("reject_reason").is_valid())
    _add_reasons(
        stats.rejects,
        rejects.append_column("name", reject_names(rejects)),
        "name",
        lambda row: row["reject_message"],
    )
    if stats.int8_errors is not None:
        stats.int8_errors.add(samples)
    stats.codecs.update(value_counts(items["src_codec"]))
    stats.notes.update(value_counts(samples["note"].drop_null()))
    stats.encode_paths.update(value_counts(samples["encode_path"]))
    stats.clip_durations += _count_lengths(clip_lengths(samples))
    stats.item_durations += _count_lengths(items["src_duration_s"])


def _add_sources(sources: dict[str, SourceStats], table: pa.Table, items: pa.Table) -> None:
    columns = [(name, "count") for name in ("shard", "skip_reason", "reject_reason")]
    for row in table.group_by("source").aggregate(columns).to_pylist():
        source = sources[row["source"]]
        source.clips += row["shard_count"]
        source.skips += row["skip_reason_count"]
        source.rejects += row["reject_reason_count"]
    for name, count in value_counts(items["source"]).items():
        sources[name].num_items += count


def _add_reasons(
    reasons: dict[str, ReasonStats], rows: pa.Table, by: str, message: Callable[[dict[str, Any]], str]
) -> None:
    """Count ``rows`` by the column ``by``, and keep the messages of a few items of each value."""
    for name, count in value_counts(rows[by]).items():
        reason = reasons[name]
        reason.count += count
        if len(reason.examples) < MAX_EXAMPLES:
            for row in rows.filter(pc.field(by) == name).slice(0, MAX_EXAMPLE_ROWS).to_pylist():
                reason.examples.setdefault(row["key"], message(row))
            reason.examples = dict(itertools.islice(reason.examples.items(), MAX_EXAMPLES))


def _describe_video(row: dict[str, Any]) -> str:
    return f"{row['src_width']}x{row['src_height']} pixels, {row['src_num_frames']} frames"


def _count_lengths(seconds: pa.ChunkedArray) -> BinCounts:
    """Count lengths in the bins of ``DURATION_EDGES_S``; nulls are left out."""
    return np.histogram(seconds.drop_null().to_numpy(), DURATION_EDGES_S)[0]

"""The parts of an index: rows sorted by outcome, group and bucket, in the order in which they arrive, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.members import array_prefixes
from pipeline.output.schema import schema
from pipeline.recipe import Recipe
from pipeline.sources.units import Plan
from pipeline.storage.parquet import parquet_writer

ROWS_PER_PART = 1_000_000
ROWS_WAITING = 131_072
"""Number of rows in memory. Beyond it, the rows of the series that has most of them become a row group."""
OUTCOMES = ("samples", "rejects", "skips")
"""Names of the lists of parts, by the outcome of their rows."""


class Portion(NamedTuple):
    """Rows that belong to one series of parts."""

    outcome: str
    group: str
    bucket: str
    rows: pa.Table


class Part(NamedTuple):
    """A complete part on local disk."""

    outcome: str
    group: str
    bucket: str
    name: str
    """Name of its file in the index."""
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFormat:
    """The rows of an output: of clips, or of the strings of a text layer."""

    schema: pa.Schema
    split: Callable[[pa.Table], Iterator[Portion]]
    """Sorts rows by outcome, group and bucket. Every row is in one portion; empty ones may be left out."""
    split_by: tuple[str, ...] = ("shard",)
    """Columns that ``split`` looks at."""
    id: str = "id"
    """Column that identifies a row."""
    key: str = "key"
    """Column whose text tells people which row it is."""
    arrays: tuple[str, ...] = ()
    """Prefixes of the columns that say where the arrays of a row are in its shard."""


def clip_rows(plan: Plan, recipe: Recipe) -> RowFormat:
    """The rows of clips, with the user columns of every generation of the plan."""
    columns = pa.unify_schemas([pa.schema([]), *plan.columns], promote_options="permissive")
    return RowFormat(
        schema=schema(recipe, columns),
        split=_split_clips,
        split_by=("shard", "skip_reason", "group", "bucket"),
        arrays=array_prefixes(recipe),
    )


def _split_clips(rows: pa.Table) -> Iterator[Portion]:
    is_sample, is_skip = rows["shard"].is_valid(), rows["skip_reason"].is_valid()
    yield Portion("rejects", "", "", rows.filter(pc.invert(pc.or_(is_sample, is_skip))))
    yield Portion("skips", "", "", rows.filter(is_skip))
    samples = rows.filter(is_sample)
    has_groups = "group" in samples.column_names  # not in the rows of a program without groups
    groups = (samples["group"] if has_groups else pa.chunked_array([pa.nulls(len(samples), pa.string())])).fill_null("")
    for group in groups.unique().to_pylist():
        of_group = samples.filter(pc.equal(groups, group))
        for bucket in of_group["bucket"].unique().to_pylist():
            yield Portion("samples", group, bucket, of_group.filter(pc.equal(of_group["bucket"], bucket)))


class PartWriter:
    """Sorts rows into parts on local disk. The same rows in the same portions give the same parts."""

    def __init__(self, row_format: RowFormat, new_path: Callable[[], Path]) -> None:
        self.counts: Counter[str] = Counter()
        """Number of rows of each outcome."""
        self._format = row_format
        self._new_path = new_path
        self._series: dict[tuple[str, str, str], _Series] = {}

    def add(self, rows: pa.Table) -> None:
        """Add a portion of rows. Their order is kept within each part."""
        for portion in self._format.split(rows):
            self._put(portion)
        while sum(series.num_waiting for series in self._series.values()) > ROWS_WAITING:
            max(self._series.values(), key=lambda series: series.num_waiting).flush()

    def close(self) -> list[Part]:
        """Complete the parts and return them in order; parts of samples by group, then by bucket."""
        parts: list[Part] = []
        for outcome in OUTCOMES:
            series = [key for key in sorted(self._series) if key[0] == outcome]
            paths = [(key, path) for key in series for path in self._series[key].close()]
            parts += [Part(*key, f"{outcome}-{n:05d}.parquet", path) for n, (key, path) in enumerate(paths)]
        return parts

    def _put(self, portion: Portion) -> None:
        if portion.rows.num_rows:
            self.counts[portion.outcome] += portion.rows.num_rows
            self._series.setdefault(portion[:3], _Series(self._format.schema, self._new_path)).add(portion.rows)


class _Series:
    """Consecutive rows, cut into parts of up to ``ROWS_PER_PART``."""

    def __init__(self, schema: pa.Schema, new_path: Callable[[], Path]) -> None:
        self.num_waiting = 0
        self._waiting: list[pa.Table] = []
        self._schema = schema
        self._new_path = new_path
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows_left = 0  # in the part that is being written

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self.num_waiting += rows.num_rows

    def flush(self) -> None:
        """Write the waiting rows as a row group, or as two where a part becomes full between them."""
        rows = pa.concat_tables(self._waiting)
        self._waiting, self.num_waiting = [], 0
        while rows.num_rows:
            if self._writer is None or not self._rows_left:
                self._begin()
            assert self._writer is not None
            self._writer.write_table(rows.slice(0, self._rows_left))
            written = min(self._rows_left, rows.num_rows)
            rows = rows.slice(written)
            self._rows_left -= written

    def close(self) -> list[Path]:
        """Complete the parts and return their paths."""
        if self._waiting:
            self.flush()
        self._end()
        return self._paths

    def _begin(self) -> None:
        self._end()
        self._paths.append(self._new_path())
        self._writer = parquet_writer(self._paths[-1], self._schema)
        self._rows_left = ROWS_PER_PART

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()

"""Reads captions: columns of an output's samples and of tables that are joined to them, in the order of the samples' ids.

An output that is growing is read as far as its units are committed. Memory stays bounded, since both sides of a join are
sorted on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.output.dataset import read_dataset
from pipeline.output.edits.edits import newest_edits
from pipeline.output.index import newest_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.sources.units import Plan
from pipeline.storage.joined_tables import read_table
from pipeline.storage.parquet import parquet_batches, parquet_schema
from pipeline.storage.store import Store
from pipeline.storage.urls import canonical
from pipeline.text.sorted_rows import ROWS_AT_ONCE, SortedRows

ID = "id"


def read_samples(
    output: Store, columns: Sequence[str], joins: Sequence[str], scratch: Callable[[], Path]
) -> Iterator[pa.Table]:
    """Yield the samples of an output that are not removed in portions, sorted by id, with ``id`` and the given columns.

    joins: Parquet files with a column ``id``. Raises ConfigError for a column that is nowhere or in two places, and for a
    table with an id twice.
    """
    plan = read_plan(output)
    tables = {_shown(url): read_table(url, beside=output) for url in joins}
    own = clip_rows(plan, read_dataset(output).recipe).schema
    places = _find_columns(columns, own, tables)
    own = pa.schema([own.field(name) for name in _distinct(ID, *columns) if places.get(name, "") == ""])
    samples = SortedRows(own, 1, scratch)
    edits = newest_edits(output)
    for path in _metadata_paths(output, plan):
        content = output.get(path)
        present = [name for name in own.names if name in parquet_schema(content).names]
        for batch in parquet_batches(content, _distinct(*present, "shard", *edits.columns), 16 * ROWS_AT_ONCE):
            samples.add(_with_columns(edits.without_removed(batch.filter(batch["shard"].is_valid())), own))
    cursors = []
    for name, table in tables.items():
        wanted = [column for column in columns if places[column] == name]
        if wanted:
            cursors.append(_Cursor(name, _sorted_table(table.select([ID, *wanted]), scratch)))
        tables[name] = None
    for portion in samples.portions():
        for cursor in cursors:
            portion = cursor.join(portion)
        yield portion.select(_distinct(ID, *columns))


def check_captions(output: Store, captions: Sequence[str], others: Sequence[str], joins: Sequence[str]) -> None:
    """Raise ConfigError for columns and tables that cannot be read, before anything is written.

    captions: columns with captions. others: further columns that are needed.
    """
    tables = {_shown(url): read_table(url, beside=output) for url in joins}
    own = clip_rows(read_plan(output), read_dataset(output).recipe).schema
    places = _find_columns((*captions, *others), own, tables)
    schemas = {"": own, **{name: table.schema for name, table in tables.items()}}
    check_caption_types(pa.schema([schemas[place].field(column) for column, place in places.items()]), captions)


def check_caption_types(schema: pa.Schema, captions: Sequence[str]) -> None:
    """Raise ConfigError for a caption column that is neither text nor lists of text."""
    for name in captions:
        type_ = schema.field(name).type
        inner = type_.value_type if pa.types.is_list(type_) or pa.types.is_large_list(type_) else type_
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)):
            raise ConfigError(f"the column '{name}' is {type_}; captions are text or lists of text")


def _distinct(*columns: str) -> list[str]:
    """The columns in their order, each one once: captions may come from any column, also from ``id``."""
    return list(dict.fromkeys(columns))


def _with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the columns of a schema; null where an earlier generation of the output has no such column."""
    arrays = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _metadata_paths(output: Store, plan: Plan) -> list[str]:
    """Files with the rows of all samples: parts of the index if it covers the plan, else the metadata of committed units."""
    index = newest_index(output)
    if index is not None and index.covers(plan):
        return [*index.samples]
    newest = newest_unit_metadata(output)
    return [newest[unit.name] for unit in plan.units if unit.name in newest]


def _find_columns(columns: Sequence[str], own: pa.Schema, tables: dict[str, pa.Table]) -> dict[str, str]:
    """The place of each column: the name of a table, or an empty text for the output itself."""
    names = {"": own.names, **{name: table.column_names for name, table in tables.items()}}
    for name, table in tables.items():
        if ID not in table.column_names:
            raise ConfigError(f"{name} has no column 'id' to join by; its columns are {', '.join(table.column_names)}")
    places = {}
    for column in columns:
        found = [name for name, known in names.items() if column in known and (column != ID or not name)]
        if len(found) > 1:
            raise ConfigError(
                f"the column '{column}' is in {' and in '.join(name or 'the output' for name in found)}; rename one of them"
            )
        if not found:
            known = sorted({column for place in names.values() for column in place})
            raise ConfigError(f"there is no column '{column}'; there are {', '.join(known)}")
        places[column] = found[0]
    return places


def _sorted_table(table: pa.Table, scratch: Callable[[], Path]) -> SortedRows:
    schema = table.schema.remove_metadata()
    schema = schema.set(0, pa.field(ID, pa.string()))
    rows = SortedRows(schema, 1, scratch)
    for start in range(0, table.num_rows, 16 * ROWS_AT_ONCE):
        rows.add(table.slice(start, 16 * ROWS_AT_ONCE).cast(schema))
    return rows


@dataclass(slots=True)
class _Cursor:
    """A table that is joined to samples while both are read in the order of their ids."""

    name: str
    rows: SortedRows
    _portions: Iterator[pa.Table] = field(init=False)
    _held: pa.Table = field(init=False)
    """Rows whose ids may still come."""

    def __post_init__(self) -> None:
        self._portions = self.rows.portions()
        self._held = self.rows.schema.empty_table()

    def join(self, samples: pa.Table) -> pa.Table:
        """Add the table's columns to a portion of samples; null where the table lacks an id."""
        last = samples[ID][-1].as_py()
        while not self._held.num_rows or self._held[ID][-1].as_py() < last:
            portion = next(self._portions, None)
            if portion is None:
                break
            self._held = pa.concat_tables([self._held, portion]).combine_chunks()
        self._check_distinct()
        rows = pc.index_in(samples[ID], value_set=self._held[ID].combine_chunks())
        for column in self._held.column_names[1:]:
            samples = samples.append_column(column, self._held[column].take(rows))
        self._held = self._held.filter(pc.greater(self._held[ID], last))
        return samples

    def _check_distinct(self) -> None:
        ids = self._held[ID]
        if len(ids) > 1 and pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
            raise ConfigError(f"{self.name} has some ids more than once; keep one row for each id")


def _shown(url: str) -> str:
    return canonical(url) if "://" in url else url

"""Rows of Parquet manifests, read in batches of bounded size."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.sources.manifest.captions import is_binary
from pipeline.sources.manifest.parquet_pages import ManifestFile, column_bounds
from pipeline.sources.manifest.records import check_names
from pipeline.sources.manifest.text_rows import MAX_DEPTH, depth
from pipeline.storage.urls import canonical

BATCH_ROWS = 1024
"""Largest number of rows held in memory at a time."""
TABLE_ROWS = 1 << 16
"""``BATCH_ROWS`` where rows do not become Python objects."""
BATCH_BYTES = 32 << 20
"""About the largest number of bytes of rows held in memory at a time. A single row may have more."""
LIGHT_BYTES = 4096
"""Bytes per row up to which a column of bytes is a user column. Heavier ones are files, and are left out."""


def plain_schema(parquet: ManifestFile, url: str) -> pa.Schema:
    """The columns with types that every part of this program can write. ConfigError for one that is nested too deeply."""
    check_names(parquet.schema_arrow.names, url)
    fields = [pa.field(field.name, _plain_type(field.type)) for field in parquet.schema_arrow]
    for column in fields:
        if depth(column.type) > MAX_DEPTH:
            raise ConfigError(
                f"manifest '{canonical(url)}': column '{column.name}' has more than {MAX_DEPTH} lists or structs "
                "inside one another; write it as text"
            )
    return pa.schema(fields)


def heavy_columns(parquet: ManifestFile, schema: pa.Schema) -> list[str]:
    """Names of the columns with files in them: bytes, perhaps in a struct or list, of more than ``LIGHT_BYTES`` a row."""
    with_bytes = {field.name for field in schema if _has_bytes(field.type)}
    if not with_bytes:
        return []
    sizes = dict.fromkeys(with_bytes, 0)
    for group in range(parquet.metadata.num_row_groups):
        facts = parquet.metadata.row_group(group)
        for number in range(facts.num_columns):
            name = facts.column(number).path_in_schema.partition(".")[0]
            if name in sizes:
                sizes[name] += facts.column(number).total_uncompressed_size
    rows = max(parquet.metadata.num_rows, 1)
    return [field.name for field in schema if sizes.get(field.name, 0) > LIGHT_BYTES * rows]


def column_values(parquet: ManifestFile, name: str, url: str) -> Iterator[Any]:
    """Yield the values of one column."""
    for batch in _batches(parquet, range(parquet.num_row_groups), [name], url):
        yield from batch.column(0).to_pylist()


def column_tables(parquet: ManifestFile, names: list[str], url: str) -> Iterator[pa.Table]:
    """Yield some columns batch by batch."""
    for batch in _batches(parquet, range(parquet.num_row_groups), names, url, TABLE_ROWS):
        yield pa.Table.from_batches([batch])


def check_text(parquet: ManifestFile, name: str, url: str) -> None:
    """ConfigError, with the row, if a column of bytes that should be text is not UTF-8."""
    for row, value in enumerate(column_values(parquet, name, url), 1):
        try:
            if isinstance(value, bytes):
                value.decode()
        except UnicodeDecodeError:
            raise ConfigError(
                f"manifest '{canonical(url)}': row {row}, column '{name}', is not UTF-8; write it as text"
            ) from None


def parquet_rows(
    parquet: ManifestFile, start: int, stop: int, names: list[str] | None, url: str
) -> Iterator[dict[str, Any]]:
    """Yield rows of the file, reading only the row groups that hold some of them. ``names``: columns; None for all.

    Shapes: ``stops[g]`` is the number of rows up to the end of row group ``g``; ``batch_start`` is a batch's first row.
    Invariant: batches follow one another without a gap, so ``batch_start`` grows by the rows of each batch.
    Example: groups of 3, 3 and 2 rows give stops 3, 6, 8; rows 4 to 7 are in groups 1 and 2, which start at row 3.
    """
    stops = list(itertools.accumulate(parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)))
    groups = range(bisect_right(stops, start), bisect_left(stops, stop) + 1)
    batch_start = stops[groups[0] - 1] if groups[0] else 0
    for batch in _batches(parquet, groups, names, url):
        first, last = max(start - batch_start, 0), min(stop - batch_start, batch.num_rows)
        for row in range(first, last):  # one by one: a row may hold a whole video
            yield from batch.slice(row, 1).to_pylist()
        batch_start += batch.num_rows
        if batch_start >= stop:
            return


def _batches(
    parquet: ManifestFile, groups: Iterable[int], names: list[str] | None, url: str, max_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield batches of row groups, with plain types."""
    for group in groups:
        rows = _rows_per_batch(parquet, group, names, url, max_rows)
        # only this thread may hold the Python file: see storage/parquet.py
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
            columns = [_plain_array(column) for column in batch.columns]
            yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows_per_batch(
    parquet: ManifestFile, group: int, names: list[str] | None, url: str, max_rows: int = BATCH_ROWS
) -> int:
    """Number of rows of a row group that take about ``BATCH_BYTES`` at most. ConfigError if a page is a bomb."""
    facts = parquet.metadata.row_group(group)
    row_bytes = 0.0
    for number in range(facts.num_columns):
        if names is not None and facts.column(number).path_in_schema.partition(".")[0] not in names:
            continue
        bounds = column_bounds(parquet, group, number, f"manifest '{canonical(url)}'")
        row_bytes += bounds.unpacked_bytes / max(facts.num_rows, 1) + bounds.repeated_bytes
    return max(1, min(max_rows, int(BATCH_BYTES / max(row_bytes, 1))))


def check_times(parquet: ManifestFile, schema: pa.Schema, url: str) -> None:
    """ConfigError, with the column, if a date or time cannot be read: it is out of range, or its time zone is unknown."""
    for field in schema:
        if not (pa.types.is_timestamp(field.type) or pa.types.is_date(field.type) or pa.types.is_duration(field.type)):
            continue
        for table in column_tables(parquet, [field.name], url):
            try:
                extremes = pc.min_max(table[field.name])
                extremes["min"].as_py(), extremes["max"].as_py()
            except (ValueError, OverflowError, LookupError, pa.ArrowException):
                raise ConfigError(
                    f"manifest '{canonical(url)}': column '{field.name}' is {field.type} with a value or a time zone that "
                    "cannot be read; write it as text"
                ) from None


def _plain_type(type_: pa.DataType) -> pa.DataType:
    """The type without extensions and views, which not every reader of an output knows."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.bool_() if type_.extension_name == "arrow.bool8" else _plain_type(type_.storage_type)
    if pa.types.is_string_view(type_):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(type_) else type_


def _plain_array(column: pa.Array) -> pa.Array:
    type_ = _plain_type(column.type)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column if column.type == type_ else pc.cast(column, type_)


def _has_bytes(type_: pa.DataType) -> bool:
    return is_binary(type_) or any(_has_bytes(type_.field(n).type) for n in range(type_.num_fields))

"""Columns of a table in Arrow files, one each, which processes map: opening them takes no memory of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa


def write_columns(folder: Path, columns: Iterable[tuple[str, pa.Array | pa.ChunkedArray]]) -> None:
    """Write each column, by name, to an Arrow file of its own in one chunk if possible, which ``map_columns`` maps."""
    for n, (name, column) in enumerate(columns):
        array = one_chunk(column) if isinstance(column, pa.ChunkedArray) else column
        with (
            pa.OSFile(str(folder / f"{n:05d}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, pa.schema([(name, column.type)])) as writer,
        ):
            writer.write_table(pa.table({name: array}))


def map_columns(folder: Path) -> dict[str, pa.ChunkedArray]:
    """Map the columns that ``write_columns`` has written."""
    columns = {}
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        columns[table.column_names[0]] = table.column(0)
    return columns


def one_chunk(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column in one chunk where possible, which makes taking rows fast."""
    merged = column.combine_chunks()
    return merged.chunk(0) if isinstance(merged, pa.ChunkedArray) and merged.num_chunks == 1 else merged


def large_type(type_: pa.DataType) -> pa.DataType:
    """The type with 64-bit offsets, because ten million captions do not fit in one chunk with 32-bit offsets."""
    if pa.types.is_list(type_):
        return pa.large_list(large_type(type_.value_type))
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(type_, type_)

"""Reads and writes Parquet in memory. Arrow never gets a Python file.

Arrow's worker threads keep a file a little longer than the call that read it. Releasing a Python file needs the
interpreter: a process may then hang or abort when it ends (apache/arrow issues 33975 and 50482), and ``read_json`` may
wait for such a thread while it holds the interpreter's lock. Memory that Arrow owns needs no interpreter.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_FORMAT: dict[str, Any] = {"compression": "zstd", "write_page_index": True, "write_page_checksum": True}


def arrow_file(content: bytes) -> pa.NativeFile:
    """A copy of the bytes, as a file that Arrow owns."""
    sink = pa.BufferOutputStream()
    sink.write(content)
    return pa.BufferReader(sink.getvalue())


def read_parquet(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in a Parquet file, or some of its columns. OSError if a page is damaged."""
    return _parquet(content).read(columns)


def parquet_batches(content: bytes, columns: list[str], rows: int) -> Iterator[pa.Table]:
    """Yield some columns of a Parquet file, up to ``rows`` rows at a time. OSError if a page is damaged."""
    for batch in _parquet(content).iter_batches(rows, columns=columns):
        yield pa.Table.from_batches([batch])


def row_groups(content: bytes) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file as tables."""
    parquet = _parquet(content)
    return (parquet.read_row_group(n) for n in range(parquet.metadata.num_row_groups))


def parquet_schema(content: bytes) -> pa.Schema:
    """The columns of a Parquet file."""
    return _parquet(content).schema_arrow


def parquet_metadata(content: bytes) -> dict[str, str]:
    """The texts that the writer of a Parquet file has put into its metadata, without those of Arrow."""
    metadata = _parquet(content).schema_arrow.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def value_counts(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Number of times that each value occurs. Nulls are not counted."""
    return {row["values"]: row["counts"] for row in pc.value_counts(column.drop_null()).to_pylist()}


def write_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file with zstd, a page index and checksums. Equal tables give equal bytes."""
    sink = io.BytesIO()  # safe: only this thread writes to it
    pq.write_table(table, sink, **_FORMAT)
    return sink.getvalue()


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of such a file at ``path``. Each table written to it becomes a row group."""
    return pq.ParquetWriter(path, schema, **_FORMAT)


def write_rows(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]], rows_per_group: int) -> None:
    """Write rows to a file. The rows of one row group are in memory at a time."""
    with parquet_writer(path, schema) as writer:
        while group := list(itertools.islice(rows, rows_per_group)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _parquet(content: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(arrow_file(content), page_checksum_verification=True)


def schema_to_text(schema: pa.Schema) -> str:
    """An Arrow schema as text, for metadata and arguments."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema that ``schema_to_text`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))

"""Sorts any number of rows in bounded memory: runs are sorted in memory, spilled to disk as Parquet, and merged."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.parquet import parquet_writer

RUN_BYTES = 128 << 20
"""Size in Arrow of the rows that are sorted in memory at a time."""
ROWS_AT_ONCE = 1024
"""Number of rows of a portion, and of a row group of a run."""


class SortedRows:
    """Rows that are added in any order and read in the order of their first columns."""

    def __init__(self, schema: pa.Schema, num_keys: int, scratch: Callable[[], Path]) -> None:
        """``num_keys``: number of leading columns to sort by. ``scratch``: makes a path for a file of a run."""
        self.schema = schema
        self._num_keys = num_keys
        self._scratch = scratch
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._runs: list[Path] = []

    def add(self, rows: pa.Table) -> None:
        """Add rows with the columns of the schema."""
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes > RUN_BYTES:
            self._spill()

    def portions(self) -> Iterator[pa.Table]:
        """Yield all rows in order, a few thousand at a time. No row may be added any more."""
        if not self._runs:
            yield from _slices(self._sorted())
            return
        if self._waiting:
            self._spill()
        rows = heapq.merge(*map(_rows, self._runs), key=itemgetter(slice(self._num_keys)))
        while portion := list(islice(rows, ROWS_AT_ONCE)):
            columns = zip(*portion, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
            yield pa.Table.from_arrays(arrays, schema=self.schema)

    def _sorted(self) -> pa.Table:
        rows = pa.concat_tables([self.schema.empty_table(), *self._waiting])
        return rows.sort_by([(name, "ascending") for name in self.schema.names[: self._num_keys]])

    def _spill(self) -> None:
        path = self._scratch()
        with parquet_writer(path, self.schema) as writer:
            for portion in _slices(self._sorted()):
                writer.write_table(portion)
        self._runs.append(path)
        self._waiting, self._waiting_bytes = [], 0


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    return (rows.slice(start, ROWS_AT_ONCE) for start in range(0, rows.num_rows, ROWS_AT_ONCE))


def _rows(path: Path) -> Iterator[tuple[Any, ...]]:
    for batch in pq.ParquetFile(str(path)).iter_batches(ROWS_AT_ONCE):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

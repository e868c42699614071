"""The parts of an index, written as rows come: by outcome and bucket, in the order of coming, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.parquet import parquet_writer

ROWS_PER_PART = 1_000_000
ROWS_WAITING = 131_072
"""In memory, before those of the bucket that has most of them become a row group."""
KINDS = ("samples", "rejects", "skips")


class PartWriter:
    """Sorts rows into parts on local disk. The same parts for the same rows in the same portions."""

    def __init__(self, schema: pa.Schema, new_path: Callable[[], Path]) -> None:
        self.counts: Counter[str] = Counter()
        """Rows of each of ``KINDS``."""
        self._schema = schema
        self._new_path = new_path
        self._series: dict[tuple[str, str], _Series] = {}

    def add(self, rows: pa.Table) -> None:
        """A portion of rows, whose order is kept within each part."""
        is_sample, is_skip = rows["shard"].is_valid(), rows["skip_reason"].is_valid()
        self._put("rejects", "", rows.filter(pc.invert(pc.or_(is_sample, is_skip))))
        self._put("skips", "", rows.filter(is_skip))
        samples = rows.filter(is_sample)
        for bucket in samples["bucket"].unique().to_pylist():
            self._put("samples", bucket, samples.filter(pc.equal(samples["bucket"], bucket)))
        while sum(series.num_waiting for series in self._series.values()) > ROWS_WAITING:
            max(self._series.values(), key=lambda series: series.num_waiting).flush()

    def close(self) -> dict[str, Path]:
        """Every part by its name, in order: samples by bucket."""
        files: dict[str, Path] = {}
        for kind in KINDS:
            series = [self._series[key] for key in sorted(self._series) if key[0] == kind]
            paths = [path for one in series for path in one.close()]
            files |= {f"{kind}-{n:05d}.parquet": path for n, path in enumerate(paths)}
        return files

    def _put(self, kind: str, bucket: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.counts[kind] += rows.num_rows
            self._series.setdefault((kind, bucket), _Series(self._schema, self._new_path)).add(rows)


class _Series:
    """Rows that follow one another in parts of up to ``ROWS_PER_PART``."""

    def __init__(self, schema: pa.Schema, new_path: Callable[[], Path]) -> None:
        self.num_waiting = 0
        self._waiting: list[pa.Table] = []
        self._schema = schema
        self._new_path = new_path
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._room = 0

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self.num_waiting += rows.num_rows

    def flush(self) -> None:
        """What waits becomes a row group, or two where a part ends between."""
        rows = pa.concat_tables(self._waiting)
        self._waiting, self.num_waiting = [], 0
        while rows.num_rows:
            if self._writer is None or not self._room:
                self._begin()
            assert self._writer is not None
            self._writer.write_table(rows.slice(0, self._room))
            written = min(self._room, rows.num_rows)
            rows = rows.slice(written)
            self._room -= written

    def close(self) -> list[Path]:
        """Its parts, whole."""
        if self._waiting:
            self.flush()
        self._end()
        return self._paths

    def _begin(self) -> None:
        self._end()
        self._paths.append(self._new_path())
        self._writer = parquet_writer(self._paths[-1], self._schema)
        self._room = ROWS_PER_PART

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()

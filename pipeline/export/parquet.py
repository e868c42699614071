"""Plain Parquet: one file per unit, for ``datasets.load_dataset("parquet", ...)``, pandas, DuckDB and the like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from pipeline.export.target import COLUMNS, ExportedSample, ExportTarget, exported_columns
from pipeline.loader import LatentDataset
from pipeline.storage.parquet import parquet_writer

ROWS_PER_GROUP = 64
"""Samples in memory at once, and in a row group."""


class ParquetTarget(ExportTarget):
    """A row per sample: id, columns, ``latents`` flattened in C order, and ``latent_shape`` (C, t, h, w)."""

    name: ClassVar[str] = "parquet"

    def __init__(self) -> None:
        self._more_columns: list[pa.Field] = []

    def check(self, data: LatentDataset) -> None:
        """Take the types of the columns that not every dataset has from ``data``; every dataset fits."""
        schema = data.columns.schema
        self._more_columns = [schema.field(name) for name in exported_columns(data) if name not in COLUMNS]

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> None:
        """Write ``data/<unit>.parquet``."""
        (folder / "data").mkdir()
        schema = self._schema()
        with parquet_writer(folder / "data" / f"{unit}.parquet", schema) as writer:
            while group := list(itertools.islice(samples, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist([_row(sample) for sample in group], schema=schema))

    def _schema(self) -> pa.Schema:
        text, integer = pa.string(), pa.int32()
        fields = [("id", text), ("key", text), ("caption", text), ("fps", pa.float64())]
        fields += [(name, integer) for name in ("height", "width", "num_frames")]
        fields += [("latents", pa.list_(pa.float32())), ("latent_shape", pa.list_(integer))]
        return pa.schema([*fields, *self._more_columns])


def _row(sample: ExportedSample) -> dict[str, object]:
    latents_Cthw = sample.latents_Cthw
    return {"id": sample.id, **sample.columns, "latents": latents_Cthw.ravel(), "latent_shape": latents_Cthw.shape}

"""Plain Parquet: one file per unit, for ``datasets.load_dataset("parquet", ...)``, pandas, DuckDB and the like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import torch

from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, user_columns
from pipeline.loader import LatentDataset
from pipeline.storage.parquet import write_rows

ROWS_PER_GROUP = 32
"""Samples in memory at once, and in a row group."""
NUMBERS = ("height", "width", "num_frames")


class ParquetTarget(ExportTarget):
    """A row per sample: id, columns, ``latents`` flattened in C order, and ``latent_shape`` (C, t, h, w)."""

    name: ClassVar[str] = "parquet"
    reader: ClassVar[str] = "Hugging Face datasets, pandas, DuckDB and other readers of Parquet"

    def __init__(self) -> None:
        self._user_columns: list[pa.Field] = []

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Take the types of the user's columns from ``data``; every dataset fits."""
        schema = data.samples.table.schema
        self._user_columns = [schema.field(name) for name in user_columns(data)]

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``data/<unit>.parquet``."""
        first = next(samples)
        (folder / "data").mkdir()
        schema = self._schema(list(first.text))
        rows = map(self._row, itertools.chain([first], samples))
        write_rows(folder / "data" / f"{unit}.parquet", schema, rows, ROWS_PER_GROUP)
        return b""

    def _schema(self, arrays: list[str]) -> pa.Schema:
        text, integers = pa.string(), pa.list_(pa.int32())
        fields = [("id", text), ("key", text), ("caption", text), ("fps", pa.float64())]
        fields += [(name, pa.int32()) for name in NUMBERS]
        fields += [("latents", pa.list_(pa.float32())), ("latent_shape", integers)]
        for name in arrays:
            fields += [(f"text_{name}", pa.list_(pa.float32())), (f"text_{name}_shape", integers)]
            fields += [(f"text_{name}_length", pa.int32())]
        return pa.schema([*fields, *self._user_columns])

    def _row(self, sample: ExportedSample) -> dict[str, object]:
        latents_Cthw = sample.normalized_mean()
        row = {
            name: sample.columns[name]
            for name in ("key", "fps", *NUMBERS, *(field.name for field in self._user_columns))
        }
        for name, array in sample.text.items():
            row[f"text_{name}"] = array.values.to(torch.float32).flatten().numpy()
            row[f"text_{name}_shape"] = array.values.shape
            row[f"text_{name}_length"] = array.length
        row |= {"latents": latents_Cthw.ravel(), "latent_shape": latents_Cthw.shape}
        return {"id": sample.id, "caption": sample.caption, **row}

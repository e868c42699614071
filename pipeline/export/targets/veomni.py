"""Parquet files of VeOmni's offline embeddings, for its training of Wan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch

from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.export.targets.pickles import pickle_tensor
from pipeline.storage.parquet import write_rows

ROWS_PER_GROUP = 16
"""Samples in memory at once, and in a row group."""
SCHEMA = pa.schema([("latents", pa.binary()), ("context", pa.binary())])


class VeOmniTarget(ExportTarget):
    """``data/<unit>.parquet``, whose columns are pickles of tensors, as VeOmni's trainer reads them.

    The trainer takes every file of the folder that it is given, whatever its name, so nothing else lies in ``data``.

    ``latents`` are the raw parameters of the posterior, mean and log-variance, ``[1,2C,t,h,w]``, from which the trainer
    takes the mean and normalizes it. ``context`` is the text, padded to the family's length, ``[1,L,D]``.
    """

    name: ClassVar[str] = "veomni"
    reader: ClassVar[str] = "VeOmni, for Wan"
    latents: ClassVar[Literal["mean", "moments"]] = "moments"
    text: ClassVar[Literal["none", "may", "must"]] = "must"
    vae_classes: ClassVar[tuple[str, ...]] = ("AutoencoderKLWan",)

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``data/<unit>.parquet``."""
        (folder / "data").mkdir()
        write_rows(folder / "data" / f"{unit}.parquet", SCHEMA, map(_row, samples), ROWS_PER_GROUP)
        return b""


def _row(sample: ExportedSample) -> dict[str, Any]:
    text_LD, _ = sample.main_text().padded()
    moments_Cthw = torch.from_numpy(sample.stored_Cthw)
    return {"latents": pickle_tensor(moments_Cthw[None]), "context": pickle_tensor(text_LD[None])}

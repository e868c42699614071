"""Parquet files of FastVideo, for text-to-video and image-to-video training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.export.targets.shapes import require_one_shape
from pipeline.loader import LatentDataset
from pipeline.storage.parquet import write_rows

ROWS_PER_GROUP = 32
"""Samples in memory at once, and in a row group."""


def _tensor_columns(name: str) -> list[tuple[str, pa.DataType]]:
    """Return the columns of a tensor."""
    return [(f"{name}_bytes", pa.binary()), (f"{name}_shape", pa.list_(pa.int64())), (f"{name}_dtype", pa.string())]


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        *_tensor_columns("vae_latent"),
        *_tensor_columns("text_embedding"),
        *((name, pa.string()) for name in ("file_name", "caption", "media_type")),
        *((name, pa.int64()) for name in ("width", "height", "num_frames")),
        *((name, pa.float64()) for name in ("duration_sec", "fps")),
    ],
    metadata={"latentmill_latents": "raw"},  # for an import; FastVideo's own files do not say it
)


class FastVideoTarget(ExportTarget):
    """One file per unit with the schema ``t2v``. Tensors are float32 bytes: FastVideo's reader ignores their dtype.

    Latents are the raw posterior mean, which FastVideo normalizes itself. Text is trimmed; the reader pads it.
    ``num_frames`` is the number of latent frames, as the reader expects.
    """

    name: ClassVar[str] = "fastvideo"
    reader: ClassVar[str] = "FastVideo, text to video"
    text: ClassVar[Literal["none", "may", "must"]] = "must"

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError if the latents have several shapes: FastVideo stacks all rows of a batch."""
        require_one_shape(data, self.name)

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``<unit>.parquet``."""
        write_rows(folder / f"{unit}.parquet", SCHEMA, map(_row, samples), ROWS_PER_GROUP)
        return b""


def _row(sample: ExportedSample) -> dict[str, Any]:
    columns, latents_Cthw = sample.columns, sample.raw_mean()
    is_image = columns["num_frames"] == 1
    fps = columns["fps"]
    values = {
        "id": sample.id,
        "file_name": columns["key"],
        "caption": sample.caption,
        "media_type": "image" if is_image else "video",
        "width": columns["width"],
        "height": columns["height"],
        "num_frames": latents_Cthw.shape[1],
        "duration_sec": 0.0 if fps is None else columns["num_frames"] / fps,
        "fps": 0.0 if fps is None else fps,
    }
    text_LD = sample.main_text().tokens().to(torch.float32).numpy()
    return values | _tensor("vae_latent", latents_Cthw) | _tensor("text_embedding", text_LD)


def _tensor(name: str, array: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the three columns of a tensor."""
    little_endian = np.ascontiguousarray(array, dtype="<f4")
    return {f"{name}_bytes": little_endian.tobytes(), f"{name}_shape": list(array.shape), f"{name}_dtype": "float32"}

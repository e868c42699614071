"""The fields of a sample in chunks that libraries of general use read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.export.sample import ExportedSample

CHUNK_BYTES = 1 << 26
"""Size in bytes at which a chunk ends, the default of both libraries."""
INTEGERS = ("height", "width", "num_frames")
META = "meta"
"""Field with the bucket group and the user's columns as JSON, since both libraries hold no null values."""


def plain_fields(sample: ExportedSample) -> dict[str, Any]:
    """Return the fields that are no tensors. ``fps`` is NaN for images."""
    columns = sample.columns
    fps = columns["fps"]
    meta = {name: value for name, value in columns.items() if name == "group" or name.startswith("meta_")}
    return {
        "id": sample.id,
        "key": columns["key"],
        "caption": sample.caption or "",
        "fps": math.nan if fps is None else float(fps),
        **{name: int(columns[name]) for name in INTEGERS},
        META: json.dumps(meta, ensure_ascii=False, sort_keys=True, default=str),
    }


def tensor_fields(sample: ExportedSample) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the fields that are tensors, all float32: latents ``[C,t,h,w]``, and the embedding's arrays without padding."""
    yield "latents", torch.from_numpy(sample.normalized_mean())
    for name, array in sample.text.items():
        values = array.values if array.facts.form == "vector" else array.tokens()
        yield f"text_{name}", values.to(torch.float32).contiguous()

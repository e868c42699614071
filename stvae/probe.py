"""What an autoencoder that is not in our table does with shapes: ``python -m stvae.probe FOLDER`` prints it as JSON.

The model is made on the meta device, where encoding computes shapes and no values. Started by ``card.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stvae import weights
from stvae.autoencoder import build, forget, posterior

SIDE = 128
"""Pixels per side of what is encoded."""
LENGTHS = (*range(1, 18), 32, 33)
"""Frames of the clips that are tried."""


def probe(config: dict[str, Any]) -> dict[str, Any]:
    """Strides, frame rule and kind of a class; RuntimeError where they follow no rule that we know."""
    with torch.device("meta"):
        model = build(config)
        picture = _encoded(model, torch.empty(1, 3, SIDE, SIDE))
        if picture is not None:
            return _facts(picture, temporal_stride=1, frames={"start": 1, "step": 1}, chunk_frames=1)
        clips = {n: _encoded(model, torch.empty(1, 3, n, SIDE, SIDE)) for n in LENGTHS}
    lengths = {n: clip[0].shape[2] for n, clip in clips.items() if clip is not None}
    for stride in (1, 2, 4, 6, 8, 16):
        for start in (1, stride):
            first = clips[start]
            fitting = [n for n in LENGTHS if n >= start and (n - start) % stride == 0]
            if first is not None and all(lengths.get(n) == 1 + (n - start) // stride for n in fitting):
                frames = {"start": start, "step": stride}
                return _facts(first, temporal_stride=stride, frames=frames, chunk_frames=None)
    raise RuntimeError(f"no rule that we know gives these numbers of latent frames: {lengths or 'none can be encoded'}")


def _encoded(model: Any, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    forget(model)
    try:
        with torch.inference_mode():
            return posterior(model.encode(x))
    except Exception:  # whatever a class raises for a shape that it does not take
        return None


def _facts(encoded: tuple[Tensor, Tensor | None], **facts: Any) -> dict[str, Any]:
    mean, logvar = encoded
    return facts | {"spatial_stride": SIDE // mean.shape[-1], "has_moments": logvar is not None}


if __name__ == "__main__":
    print(json.dumps(probe(weights.read_config(Path(sys.argv[1])))))

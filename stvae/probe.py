"""Find out how an autoencoder without a row in our table maps sizes: ``python -m stvae.probe FOLDER`` prints JSON.

The model is built on the meta device, where encoding computes shapes and no values. ``card.py`` starts this program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stvae import weights
from stvae.autoencoder import build_untrained, clear_cached_frames, find_class, mean_and_logvar
from stvae.card import UnknownVAE
from stvae.checkpoints.bounded_build import build_bounded

SIDE = 128
"""Height and width, in pixels, of the inputs that are tried."""
LENGTHS = (*range(1, 18), 32, 33)
"""Numbers of frames of the clips that are tried."""
PUBLISHED_TENSORS = 4096
"""More tensors than a published VAE has."""
STRIDES = (1, 2, 4, 6, 8, 16)
"""Temporal strides that are compared with the lengths of the latents."""


def probe(config: dict[str, Any], num_tensors: int = PUBLISHED_TENSORS) -> dict[str, Any]:
    """Return strides, frame rule and ``has_moments`` of a class. RuntimeError if they follow no rule that we know."""
    find_class(config)
    with torch.device("meta"):
        model = build_bounded(lambda: build_untrained(config), num_tensors, "the configuration")
        picture = _try_encode(model, torch.empty(1, 3, SIDE, SIDE))
        if picture is not None:
            return _facts(picture, temporal_stride=1, frames={"start": 1, "step": 1}, chunk_frames=1)
        clips = {n: _try_encode(model, torch.empty(1, 3, n, SIDE, SIDE)) for n in LENGTHS}
    latent_lengths = {n: clip[0].shape[2] for n, clip in clips.items() if clip is not None}
    for stride in STRIDES:
        for start in (1, stride):
            first = clips[start]
            fitting = [n for n in LENGTHS if n >= start and (n - start) % stride == 0]
            if first is not None and all(latent_lengths.get(n) == 1 + (n - start) // stride for n in fitting):
                frames = {"start": start, "step": stride}
                return _facts(first, temporal_stride=stride, frames=frames, chunk_frames=None)
    raise RuntimeError(
        f"no known rule maps these numbers of frames to these numbers of latent frames: {latent_lengths or 'none encodes'}"
    )


def _try_encode(model: Any, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Return mean and log-variance, or None if the class does not take this shape."""
    clear_cached_frames(model)
    try:
        with torch.inference_mode():
            return mean_and_logvar(model.encode(x))
    except Exception:  # each class raises errors of its own for a shape that it does not take
        return None


def _facts(encoded: tuple[Tensor, Tensor | None], **facts: Any) -> dict[str, Any]:
    mean, logvar = encoded
    return facts | {"spatial_stride": SIDE // mean.shape[-1], "has_moments": logvar is not None}


if __name__ == "__main__":
    checkpoint = Path(sys.argv[1])
    try:
        print(json.dumps(probe(weights.read_config(checkpoint), len(weights.read_headers(checkpoint)))))
    except (RuntimeError, UnknownVAE, weights.WeightsError) as error:
        sys.exit(str(error))

"""A batch as Open-Sora's training step takes it (v1.2, scripts/train.py, with ``load_video_features``)."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.loader.batch import Batch

IMAGE_FPS = 120.0
"""What Open-Sora gives for images (opensora/datasets/utils.py)."""


def open_sora_batch(batch: Batch, *, floor_fps: bool = False, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """``video`` [B,4,t,h,w], ``text`` [B] str, ``fps``, ``height``, ``width``, ``num_frames`` [B], and nothing else.

    Height, width and num_frames are of the pixels, as its position and timestep scales want them. ``floor_fps``: whole
    numbers as its own reader gives (23.976 becomes 23), else the true rate; images have 120 either way. ConfigError for
    latents that are not normalised, or not of one shape.
    """
    if not batch["normalized"] or "mask" in batch or "lengths" in batch:
        raise ConfigError("Open-Sora takes normalised latents of one shape: normalized=True and shapes='bucket'")
    fps = batch["fps"].floor() if floor_fps else batch["fps"]
    return {
        "video": batch["latents"].to(dtype),
        "text": [text or "" for text in batch["caption"]],
        "fps": fps.nan_to_num(IMAGE_FPS),
        "height": batch["height"],
        "width": batch["width"],
        "num_frames": batch["num_frames"],
    }

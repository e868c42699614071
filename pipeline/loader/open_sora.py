"""Batches in the form of Open-Sora's training step (v1.2, scripts/train.py, with ``load_video_features``)."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.loader.collation.batch import Batch

IMAGE_FPS = 120.0
"""Frame rate that Open-Sora gives images. Source: opensora/datasets/utils.py."""


def open_sora_batch(batch: Batch, *, floor_fps: bool = False, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return the entries of a batch that Open-Sora's training step takes, under its names.

    ``video`` is [B,4,t,h,w]; ``text`` has B strings; ``fps``, ``height``, ``width`` and ``num_frames`` are [B]. Height,
    width and num_frames are in pixel space, as its position and timestep scales need them.
    With a text layer of Open-Sora's T5, ``y`` is [B,1,L,D] and ``mask`` int64 [B,L] in place of ``text``, and
    ``text_dropped`` bool [B] marks the samples for which the model takes its own null embedding, as its ``token_drop`` does.
    floor_fps: round frame rates down, as Open-Sora's own reader does (23.976 becomes 23). Images have 120 either way.
    Raises ConfigError for latents that are not normalized or not of one shape.
    """
    if not batch["normalized"] or "mask" in batch or "lengths" in batch:
        raise ConfigError("Open-Sora takes normalized latents of one shape; use normalized=True and shapes='bucket'")
    fps = batch["fps"].floor() if floor_fps else batch["fps"]
    return {
        "video": batch["latents"].to(dtype),
        **_text(batch, dtype),
        "fps": fps.nan_to_num(IMAGE_FPS),
        "height": batch["height"],
        "width": batch["width"],
        "num_frames": batch["num_frames"],
    }


def _text(batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """Return the entries for the text: its embedding if there is a text layer, else the captions."""
    if "text_embeddings" not in batch:
        return {"text": [text or "" for text in batch["caption"]]}
    return {
        "y": batch["text_embeddings"].to(dtype)[:, None],
        "mask": batch["text_mask"].to(torch.int64),
        "text_dropped": batch["text_dropped"],
    }

"""Texts in the form of Wan's transformer, as its own code and most trainers call it."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.loader.collation.batch import Batch


def wan_batch(batch: Batch, *, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return ``latents`` [B,C,t,h,w], ``context`` and ``context_lengths`` of a batch with a text layer of UMT5.

    ``context`` is [B,L,D]: the rows of each text, followed by zeros, as the transformer attends to them without a mask.
    ``context_lengths`` is int64 [B]. For Wan's own code, which takes a list of texts without padding:
    ``[rows[:n] for rows, n in zip(context, context_lengths)]``.
    Raises ConfigError for latents that are not normalized or not of one shape, and for batches without embeddings.
    """
    if not batch["normalized"] or "mask" in batch or "lengths" in batch:
        raise ConfigError("Wan takes normalized latents of one shape; use normalized=True and shapes='bucket'")
    if "text_embeddings" not in batch:
        raise ConfigError("this batch has no embeddings: open the output with LatentDataset(url, text=LAYER)")
    return {
        "latents": batch["latents"].to(dtype),
        "context": batch["text_embeddings"].to(dtype),
        "context_lengths": batch["text_mask"].sum(dim=1),
    }

"""The attention mask of HunyuanVideo 1.5's VAE, made with one operation per latent frame.

diffusers fills it row by row. A clip of 121 frames at 480x848 has 49,290 rows, which take half a second of a GPU's time,
and torch.compile does not come to an end with them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

METHOD = "prepare_causal_attention_mask"


def replace_slow_masks(model: nn.Module) -> None:
    """Let every attention block of an AutoencoderKLHunyuanVideo15 make its mask with ``causal_mask``."""
    for module in model.modules():
        if hasattr(module, METHOD):
            setattr(module, METHOD, causal_mask)


def causal_mask(
    n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int | None = None
) -> Tensor:
    """Return 0 where a query may see a key and -inf elsewhere, [S,S] or [B,S,S] with S = ``n_frame * n_hw``.

    A cell of the latent grid sees all cells of its own frame and of earlier ones. The arguments and the result are those
    of the method of diffusers that it replaces.
    """
    size = n_frame * n_hw
    mask = torch.full((size, size), float("-inf"), dtype=dtype, device=device)
    for end in range(n_hw, size + 1, n_hw):
        mask[end - n_hw : end, :end] = 0
    return mask if batch_size is None else mask.expand(batch_size, -1, -1)

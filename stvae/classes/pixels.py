"""Conversion between uint8 pixels and the range of pixels of a class.

Shape suffixes: B batch, T frames, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stvae.classes.convention import FROM_MINUS_ONE_TO_ONE, PixelScale


def to_model_range(pixels_B3THW: Tensor, scale: PixelScale) -> Tensor:
    """Return float32 pixels in the range of a class."""
    if scale == FROM_MINUS_ONE_TO_ONE:
        return pixels_B3THW.float().div_(127.5).sub_(1)
    mean, std = _per_channel(scale, pixels_B3THW.device)
    return pixels_B3THW.float().div_(255).sub_(mean).div_(std)


def to_uint8(x_B3THW: Tensor, scale: PixelScale) -> Tensor:
    """Return uint8 pixels of float32 pixels in the range of a class, which are overwritten."""
    if scale == FROM_MINUS_ONE_TO_ONE:
        x_B3THW.add_(1).mul_(127.5)
    else:
        mean, std = _per_channel(scale, x_B3THW.device)
        x_B3THW.mul_(std).add_(mean).mul_(255)
    return x_B3THW.round_().clamp_(0, 255).to(torch.uint8)


def _per_channel(scale: PixelScale, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation in the shape [3,1,1,1]."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (scale.mean, scale.std))
    return mean, std

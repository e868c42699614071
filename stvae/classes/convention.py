"""The columns of the table of classes: a row says how one class of diffusers differs from the others. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stvae.geometry import SizeRule, power_of_two

Config = Mapping[str, Any]
Statistics = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One value per channel, or for each channel one value per latent frame."""


@dataclass(frozen=True, slots=True)
class PixelScale:
    """The pixels that a class takes and returns: ``(value / 255 - mean) / std`` for red, green and blue."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


FROM_MINUS_ONE_TO_ONE = PixelScale()
"""The pixels of most classes."""
IMAGENET = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pictures, with which MiniMax-H3 and many vision models normalize."""
EIGHT_BITS = PixelScale((128 / 255,) * 3, (128 / 255,) * 3)
"""``value / 128 - 1``, the pixels of Kandinsky 6."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one class encodes and decodes. The callables take the configuration of a checkpoint.

    They raise ValueError for a configuration with which the class of diffusers does not work.
    """

    spatial_stride: Callable[[Config], int]
    """Pixels per latent cell along height and width, without ``patch``."""
    temporal_stride: Callable[[Config], int] = lambda config: 1
    """Frames per latent frame."""
    takes_images: bool = False
    """True if it takes pictures [N,3,H,W] rather than clips [B,3,T,H,W]. Any number of frames fits."""
    pictures_have_time: bool = False
    """True if it takes and returns pictures as clips of one frame, [N,3,1,H,W]."""
    adds_alpha: Callable[[Config], bool] = lambda config: False
    """True if pixels have a fourth channel, the opacity. Ours are opaque, and the decoded opacity is dropped."""
    pixels: PixelScale = FROM_MINUS_ONE_TO_ONE
    """The range of its pixels."""
    frame_rule: Callable[[Config, int], SizeRule] = lambda config, stride: SizeRule(start=1, step=stride)
    """Numbers of frames that fit, given the temporal stride. By default the first frame stands alone: 4n+1, 8n+1."""
    chunk_frames: Callable[[Config], int | None] = lambda config: None
    """Number of frames that are encoded independently of the others; None if the whole clip is encoded together."""
    size_rules: Callable[[Config], tuple[SizeRule, SizeRule]] | None = None
    """Rules of height and width; None if both are multiples of the spatial stride."""
    has_moments: Callable[[Config], bool] = lambda config: True
    """True if encoding gives a posterior (mean and log-variance), False if it gives only a mean."""
    lacks_logvar: bool = False
    """True if it returns a posterior whose log-variance is not the model's. Only the mean may be stored."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that older checkpoints leave out, equal to those in the signature of the class."""
    needs_statistics: bool = False
    """True if its latents are normalized with ``latents_mean`` and ``latents_std``, which its configuration must have."""
    statistics_per_frame: bool = False
    """True if the statistics may hold one value per channel and latent frame."""
    patch: int = 1
    """Side of the square of latent cells that the transformer takes as one, with channels (c, row, column)."""
    first_frame_copies: Callable[[Config], int] = lambda config: 0
    """Number of copies of the first frame to put in front of a clip, for classes that leave this to the caller."""
    one_clip_per_call: bool = False
    """True if it encodes correctly only one clip per call."""
    decodes_whole_clips: bool = False
    """True if it encodes pictures, but needs a whole clip and its length to decode."""
    decodes_frames_first: bool = False
    """True if it decodes to [B,T,3,H,W]."""
    tiling: Literal["optional", "always", "never"] = "optional"
    """Use of tiles in encoding: ``always`` if its published latents are tiled ones, ``never`` if its tiles are broken."""
    channels_last_on_gpus: bool = False
    """True if it was measured to encode faster on GPUs with the weights of its convolutions in channels-last order."""
    float32_modules: tuple[str, ...] = ()
    """Names of submodules that compute in float32 whatever the type of the others is."""


def stride_of_levels(key: str) -> Callable[[Config], int]:
    """Return the stride of a model that halves its input between each two of the levels under ``key``."""
    return lambda config: power_of_two(len(config[key]) - 1)


def number_at(key: str) -> Callable[[Config], int]:
    """Return the stride of a model whose configuration names it under ``key``."""
    return lambda config: int(config[key])


def product_of(key: str) -> Callable[[Config], int]:
    """Return the stride of a model whose configuration lists a factor per level under ``key``."""
    return lambda config: math.prod(config[key])

"""Geometry of MiniMax-H3's VAE: chunks of 17 frames that are encoded alone, the last latent frames of a clip dropped.

Source: diffusers 0.42.1, models/autoencoders/autoencoder_kl_minimax_h3.py.
"""

from __future__ import annotations

import math

from stvae.classes.convention import Config
from stvae.geometry import SizeRule

DEFAULTS = {
    "latent_channels": 24,
    "spatial_downsample_factors": [2, 2, 2, 2, 1, 1],
    "temporal_downsample_factors": [1, 2, 2, 1, 1, 1],
    "spatial_padding_mode": "reflect",
    "clip_length": 17,
    "token_drop": 3,
}
FLOAT32_MODULES = ("encoder", "quant_conv", "norm1", "norm2", "norm_out", "scale1", "scale2", "rope")
"""``_keep_in_fp32_modules`` of the class, and a constant of its decoder, which ``from_pretrained`` does not convert."""


def spatial_stride(config: Config) -> int:
    """Return the pixels per latent cell. ValueError if a level shrinks frames by their borders too."""
    factors = list(zip(config["spatial_downsample_factors"], config["temporal_downsample_factors"], strict=True))
    if any(spatial == 1 and temporal > 1 for spatial, temporal in factors):
        raise ValueError(
            "a level of it shortens time and keeps the size of frames; the class cuts their borders off in such a level"
        )
    return math.prod(spatial for spatial, _ in factors)


def temporal_stride(config: Config) -> int:
    """Return the frames per latent frame."""
    return math.prod(config["temporal_downsample_factors"])


def frame_rule(config: Config, stride: int) -> SizeRule:
    """Return the numbers of frames whose latents cover them all: 1, and 17n+5 of the published model."""
    # Invariant: the class repeats the last frame until the clip has whole chunks, and drops the last ``token_drop``
    #            latent frames. So the last chunk keeps its first frames only, and must have just these.
    # Example:   17 frames, stride 4, 3 dropped: the last chunk keeps 2 of 5 latent frames, which cover 17 - 3 * 4 = 5.
    chunk, dropped = int(config["clip_length"]), int(config["token_drop"])
    last = chunk - stride * dropped
    if dropped < 0 or last < 1:
        raise ValueError(f"token_drop is {dropped}; expected 0 to {(chunk - 1) // stride} for chunks of {chunk} frames")
    return SizeRule(start=last, step=chunk, or_one=True)


def size_rules(config: Config) -> tuple[SizeRule, SizeRule]:
    """Return the rules of height and width. Padding by reflection needs two cells at least."""
    stride = spatial_stride(config)
    cells = 2 if config["spatial_padding_mode"] == "reflect" else 1
    rule = SizeRule(start=cells * stride, step=stride)
    return rule, rule

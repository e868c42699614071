"""Strides and frame rules of Wan's VAE and of the classes that were made from it."""

from __future__ import annotations

from stvae.classes.convention import Config
from stvae.geometry import SizeRule, power_of_two

FRAMES_PER_CALL = 4
"""Number of frames that the encoder takes at once after the first one, whatever its temporal stride is."""
DEFAULTS = {"temperal_downsample": [False, True, True], "dim_mult": [1, 2, 4, 4]}


def spatial_stride(config: Config) -> int:
    """Return the pixels per latent cell: a halving between each two levels, times the side of a patch."""
    return int(power_of_two(len(_halves_time(config))) * (config.get("patch_size") or 1))


def temporal_stride(config: Config) -> int:
    """Return the frames per latent frame. ValueError if the class cannot encode a clip with it."""
    stride = power_of_two(sum(_halves_time(config)))
    if stride > FRAMES_PER_CALL:
        raise ValueError(
            f"temperal_downsample makes 1 latent frame of {stride}, but the class encodes {FRAMES_PER_CALL} frames at a time"
        )
    return stride


def frame_rule(config: Config, stride: int) -> SizeRule:
    """Return the rule 4n+1. The class drops the frames of a last group of fewer than four, whatever its stride is."""
    return SizeRule(start=1, step=FRAMES_PER_CALL)


def _halves_time(config: Config) -> list[bool]:
    """Return whether each level but the last halves the number of frames; they all halve height and width."""
    halves_time, levels = list(config["temperal_downsample"]), len(config["dim_mult"])
    if len(halves_time) != levels - 1:
        raise ValueError(
            f"temperal_downsample has {len(halves_time)} values; dim_mult has {levels}, so expected {levels - 1}"
        )
    return halves_time

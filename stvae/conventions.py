"""Meaning of the configurations of diffusers' autoencoders, from the table of ``stvae/classes``. Imports no torch.

A class without a row works if it follows the usual conventions: a subprocess encodes shapes on the meta device
(``probe.py``). A row saves that time, and holds what shapes do not show.

Sources: diffusers 0.42, models/autoencoders/*.py for geometry, and the pipeline of each model for normalization.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stvae.classes.convention import Config, Convention, Statistics
from stvae.classes.images import IMAGES
from stvae.classes.videos import VIDEOS
from stvae.geometry import Geometry, multiples, plain_geometry

TABLE: dict[str, Convention] = IMAGES | VIDEOS
"""The row of each class that is supported."""
CONSTANTS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")
"""Names of the statistics that some classes keep among their weights."""
SIGMA_DATA = {"AutoencoderKLCosmos": 0.5}
"""Published factor of the scheduler, for classes whose transformer works in the scale of its scheduler."""
ASSUMED = (
    "pixels are in [-1, 1]",
    "the log-variance that encode returns, if any, is that of the posterior",
    "latents are normalized with scaling_factor, shift_factor, latents_mean and latents_std of the checkpoint",
)
"""Facts that are assumed of a class that the table does not list."""

UNLISTED = Convention(spatial_stride=lambda config: 1)
"""Row of a class that the table does not list. ``probe.py`` finds its geometry, so the stride here is not used."""


def with_defaults(config: Config) -> dict[str, Any]:
    """Return the configuration, completed with the defaults of its class that matter here."""
    convention = TABLE.get(config["_class_name"])
    defaults = dict(convention.defaults) if convention else {}
    return defaults | {key: value for key, value in config.items() if value is not None}


def geometry(config: Config) -> Geometry:
    """Return the geometry of a class in the table, from its completed configuration."""
    convention = TABLE[config["_class_name"]]
    spatial_stride = convention.spatial_stride(config) * convention.patch
    temporal_stride = convention.temporal_stride(config)
    if convention.takes_images:
        return plain_geometry(spatial_stride, 1, multiples(1), chunk_frames=1)
    frames, chunk_frames = convention.frame_rule(config, temporal_stride), convention.chunk_frames(config)
    if convention.size_rules is None:
        return plain_geometry(spatial_stride, temporal_stride, frames, chunk_frames)
    height, width = convention.size_rules(config)
    return Geometry(
        spatial_stride=spatial_stride,
        temporal_stride=temporal_stride,
        frames=frames,
        height=height,
        width=width,
        chunk_frames=chunk_frames,
    )


def latent_channels(config: Config) -> int:
    """Return the number of channels of a latent cell, as the transformer takes it."""
    names = ("latent_channels", "z_dim", "z_channels")
    name = next((key for key in names if key in config), None)
    if name is None:
        raise ValueError(f"it lacks the number of latent channels ({', '.join(names)})")
    convention = TABLE.get(config["_class_name"], UNLISTED)
    return int(config[name]) * convention.patch**2


def normalization(
    config: Config, constants: Mapping[str, list[float]], sigma_data: float | None
) -> tuple[Statistics, Statistics]:
    """Return shift and scale of ``(raw - shift) * scale``, per channel, or per channel and latent frame.

    ``constants`` are the statistics among the weights. ``sigma_data`` is the factor of the scheduler if the model's
    transformer works in the scale of its scheduler (Cosmos), else None.
    """
    channels = latent_channels(config)
    given = config.get("scaling_factor")
    factor = 1.0 if given is None else float(given)  # 0 is not taken for "no factor"
    if "bn.running_mean" in constants:
        eps = float(config["batch_norm_eps"])
        return (
            tuple(constants["bn.running_mean"]),
            tuple(1 / math.sqrt(variance + eps) for variance in constants["bn.running_var"]),
        )
    mean = constants.get("latents_mean") or config.get("latents_mean")
    std = constants.get("latents_std") or config.get("latents_std")
    convention = TABLE.get(config["_class_name"], UNLISTED)
    if mean is None or std is None:
        if convention.needs_statistics:
            raise ValueError(
                "it lacks latents_mean and latents_std, with which the latents of this class are normalized"
            )
        return (float(config.get("shift_factor") or 0.0),) * channels, (factor * (sigma_data or 1.0),) * channels
    if sigma_data is not None:
        factor = sigma_data
    scale = [factor / value for value in std]
    fits = len(mean) % channels == 0 if convention.statistics_per_frame else len(mean) == channels
    if len(mean) != len(std) or not fits:
        raise ValueError(f"{len(mean)} latents_mean and {len(std)} latents_std do not fit {channels} channels")
    if len(mean) == channels:
        return tuple(mean), tuple(scale)
    return _split_by_channel(mean, channels), _split_by_channel(scale, channels)


def _split_by_channel(values: list[float], channels: int) -> tuple[tuple[float, ...], ...]:
    length = len(values) // channels
    return tuple(tuple(values[start : start + length]) for start in range(0, len(values), length))

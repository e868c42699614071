"""Meaning of the configurations of diffusers' autoencoders: a table with a row for each class.

A class without a row works if it follows the usual conventions: a subprocess encodes shapes on the meta device
(``probe.py``). A row saves that time, and holds what shapes do not show. Imports no torch.

Sources: diffusers 0.42, models/autoencoders/*.py for geometry, and the pipeline of each model for normalization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stvae.geometry import Geometry, SizeRule, multiples, plain_geometry, power_of_two

Config = Mapping[str, Any]
Statistics = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One value per channel, or for each channel one value per latent frame."""
CONSTANTS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")
"""Names of the statistics that some classes keep among their weights."""
SIGMA_DATA = {"AutoencoderKLCosmos": 0.5}
"""Published factor of the scheduler, for classes whose transformer works in the scale of its scheduler."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one class encodes and decodes. The callables take the configuration of a checkpoint."""

    spatial_stride: Callable[[Config], int]
    """Pixels per latent cell along height and width, without ``patch``."""
    temporal_stride: Callable[[Config], int] = lambda config: 1
    """Frames per latent frame."""
    takes_images: bool = False
    """True if it takes pictures [N,3,H,W] rather than clips [B,3,T,H,W]. Any number of frames fits."""
    frame_rule: Callable[[Config, int], SizeRule] = lambda config, stride: SizeRule(start=1, step=stride)
    """Numbers of frames that fit, given the temporal stride. By default the first frame stands alone: 4n+1, 8n+1."""
    size_rules: Callable[[Config], tuple[SizeRule, SizeRule]] | None = None
    """Rules of height and width; None if both are multiples of the spatial stride."""
    has_moments: Callable[[Config], bool] = lambda config: True
    """True if encoding gives a posterior (mean and log-variance), False if it gives only a mean."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that older checkpoints leave out, equal to those in the signature of the class."""
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
    always_tiled: bool = False
    """True if it can encode only in tiles."""


def _stride_of_levels(key: str) -> Callable[[Config], int]:
    """Return the stride of a model that halves its input between each two of the levels under ``key``."""
    return lambda config: power_of_two(len(config[key]) - 1)


def _number_at(key: str) -> Callable[[Config], int]:
    """Return the stride of a model whose configuration names it under ``key``."""
    return lambda config: int(config[key])


def _product_of(key: str) -> Callable[[Config], int]:
    """Return the stride of a model whose configuration lists a factor per level under ``key``."""
    return lambda config: math.prod(config[key])


def _wan_spatial(config: Config) -> int:
    return int(power_of_two(len(config["temperal_downsample"])) * (config.get("patch_size") or 1))


def _wan_temporal(config: Config) -> int:
    return power_of_two(sum(config["temperal_downsample"]))


def _ltx_stride(key: str, patch: str) -> Callable[[Config], int]:
    return lambda config: int(config.get(key) or config[patch] * power_of_two(sum(config["spatio_temporal_scaling"])))


def _ltx2_stride(key: str, patch: str, block_types: tuple[str, ...]) -> Callable[[Config], int]:
    def stride(config: Config) -> int:
        scaled = config["spatio_temporal_scaling"]
        scaled = [scaled] * len(config["downsample_type"]) if isinstance(scaled, bool) else scaled
        blocks = zip(config["downsample_type"], scaled, strict=False)
        halvings = sum(block_type in block_types for block_type, is_scaled in blocks if is_scaled)
        return int(config.get(key) or config[patch] * power_of_two(halvings))

    return stride


def _vidtok_levels(config: Config, key: str) -> int:
    levels_listed = config.get(key)
    if levels_listed is not None:
        return len(levels_listed)
    levels = len(config["ch_mult"])
    return levels - 1 if key == "spatial_ds" else 2


def _vidtok_frame_rule(config: Config, stride: int) -> SizeRule:
    return SizeRule(start=1, step=stride) if config["is_causal"] else multiples(16)


def _allegro_size_rules(config: Config) -> tuple[SizeRule, SizeRule]:
    side = int(config["sample_size"])
    return SizeRule(start=side, step=side - 120), SizeRule(start=side, step=side - 80)


_WAN_DEFAULTS = {"temperal_downsample": [False, True, True]}
_WAN = Convention(spatial_stride=_wan_spatial, temporal_stride=_wan_temporal, defaults=_WAN_DEFAULTS)
_LTX_DEFAULTS = {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}

TABLE: dict[str, Convention] = {
    "AutoencoderKL": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"), takes_images=True, defaults={"scaling_factor": 0.18215}
    ),
    "AutoencoderKLTemporalDecoder": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"),
        takes_images=True,
        decodes_whole_clips=True,
        defaults={"scaling_factor": 0.18215},
    ),
    "AutoencoderTiny": Convention(
        spatial_stride=_stride_of_levels("encoder_block_out_channels"),
        takes_images=True,
        has_moments=lambda config: False,
    ),
    "AutoencoderDC": Convention(
        spatial_stride=_stride_of_levels("encoder_block_out_channels"),
        takes_images=True,
        has_moments=lambda config: False,
    ),
    # its transformer takes 2x2 cells as one, normalized with the statistics of a batch norm
    "AutoencoderKLFlux2": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"),
        takes_images=True,
        patch=2,
        defaults={"batch_norm_eps": 1e-4},
    ),
    "AutoencoderKLMagvit": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"),
        temporal_stride=lambda config: power_of_two(len(config["block_out_channels"]) - 2),
        defaults={"scaling_factor": 0.7125},
    ),
    "AutoencoderKLCogVideoX": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"),
        temporal_stride=_number_at("temporal_compression_ratio"),
        defaults={"scaling_factor": 1.15258426, "temporal_compression_ratio": 4},
    ),
    # it encodes only in tiles: 24 frames every 16 frames, 320 pixels every 200 pixels down and every 240 across
    "AutoencoderKLAllegro": Convention(
        spatial_stride=_stride_of_levels("block_out_channels"),
        temporal_stride=_number_at("temporal_compression_ratio"),
        frame_rule=lambda config, stride: SizeRule(start=24, step=16),
        size_rules=_allegro_size_rules,
        one_clip_per_call=True,
        always_tiled=True,
        decodes_frames_first=True,
        defaults={"scaling_factor": 0.13, "temporal_compression_ratio": 4, "sample_size": 320},
    ),
    "AutoencoderKLHunyuanVideo": Convention(
        spatial_stride=_number_at("spatial_compression_ratio"),
        temporal_stride=_number_at("temporal_compression_ratio"),
        defaults={"scaling_factor": 0.476986, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLHunyuanVideo15": Convention(
        spatial_stride=_number_at("spatial_compression_ratio"),
        temporal_stride=_number_at("temporal_compression_ratio"),
        one_clip_per_call=True,
        defaults={"scaling_factor": 1.03682, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLLTXVideo": Convention(
        spatial_stride=_ltx_stride("spatial_compression_ratio", "patch_size"),
        temporal_stride=_ltx_stride("temporal_compression_ratio", "patch_size_t"),
        defaults=_LTX_DEFAULTS,
    ),
    "AutoencoderKLLTX2Video": Convention(
        spatial_stride=_ltx2_stride("spatial_compression_ratio", "patch_size", ("spatial", "spatiotemporal", "conv")),
        temporal_stride=_ltx2_stride(
            "temporal_compression_ratio", "patch_size_t", ("temporal", "spatiotemporal", "conv")
        ),
        defaults={
            "patch_size": 4,
            "patch_size_t": 1,
            "spatio_temporal_scaling": [True] * 4,
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        },
    ),
    "AutoencoderKLMochi": Convention(
        spatial_stride=_product_of("spatial_expansions"),
        temporal_stride=_product_of("temporal_expansions"),
        defaults={"spatial_expansions": [2, 2, 2], "temporal_expansions": [1, 2, 3]},
    ),
    "AutoencoderKLCosmos": Convention(
        spatial_stride=_number_at("spatial_compression_ratio"),
        temporal_stride=_number_at("temporal_compression_ratio"),
        has_moments=lambda config: False,
        defaults={"spatial_compression_ratio": 8, "temporal_compression_ratio": 8},
    ),
    "AutoencoderVidTok": Convention(
        spatial_stride=lambda config: power_of_two(_vidtok_levels(config, "spatial_ds")),
        temporal_stride=lambda config: power_of_two(_vidtok_levels(config, "tempo_ds")),
        frame_rule=_vidtok_frame_rule,
        has_moments=lambda config: config.get("regularizer") != "fsq",
        first_frame_copies=lambda config: (
            power_of_two(_vidtok_levels(config, "tempo_ds")) - 1 if config["is_causal"] else 0
        ),
        defaults={"is_causal": True, "ch_mult": [1, 2, 4, 4]},
    ),
}


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
    frames = convention.frame_rule(config, temporal_stride)
    if convention.size_rules is None:
        return plain_geometry(spatial_stride, temporal_stride, frames)
    height, width = convention.size_rules(config)
    return Geometry(
        spatial_stride=spatial_stride, temporal_stride=temporal_stride, frames=frames, height=height, width=width
    )


def latent_channels(config: Config) -> int:
    """Return the number of channels of a latent cell, as the transformer takes it."""
    name = next(key for key in ("latent_channels", "z_dim", "z_channels") if key in config)
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
    if mean is None or std is None:
        return (float(config.get("shift_factor") or 0.0),) * channels, (factor * (sigma_data or 1.0),) * channels
    if sigma_data is not None:
        factor = sigma_data
    scale = [factor / value for value in std]
    if len(mean) != len(std) or len(mean) % channels:
        raise ValueError(f"{len(mean)} latents_mean and {len(std)} latents_std do not fit {channels} channels")
    if len(mean) == channels:
        return tuple(mean), tuple(scale)
    return _split_by_channel(mean, channels), _split_by_channel(scale, channels)


def _split_by_channel(values: list[float], channels: int) -> tuple[tuple[float, ...], ...]:
    length = len(values) // channels
    return tuple(tuple(values[start : start + length]) for start in range(0, len(values), length))

"""Diffusers' autoencoders without tensors: what their configurations mean, and a table of where a class differs.

A class that follows the conventions needs no row: an unknown one is asked on the meta device by a subprocess
(``probe.py``). A row saves that, and holds what no probe can find. Imports no torch.

Sources: diffusers 0.42, models/autoencoders/*.py for geometry, and for normalisation the pipeline of each model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stvae.geometry import Geometry, Rule, multiples, plain_geometry

Config = Mapping[str, Any]
Statistics = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One value per channel, or for each channel one per latent frame."""
CONSTANTS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")
"""Statistics that some classes keep among their weights."""
SIGMA_DATA = {"AutoencoderKLCosmos": 0.5}
"""Classes whose transformer works in the scale of its scheduler, with the published scheduler's factor."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one class encodes. The callables take its configuration."""

    spatial_stride: Callable[[Config], int]
    temporal_stride: Callable[[Config], int] = lambda config: 1
    images: bool = False
    """Takes pictures [N,3,H,W] rather than clips [B,3,T,H,W]; any number of frames fits."""
    frames: Callable[[Config, int], Rule] = lambda config, stride: Rule(start=1, step=stride)
    """Of the temporal stride; by default the first frame stands alone: 4n+1, 8n+1."""
    size: Callable[[Config], tuple[Rule, Rule]] | None = None
    """Rules of height and width where they are not multiples of the spatial stride."""
    has_moments: Callable[[Config], bool] = lambda config: True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that older checkpoints leave out, as in the class's signature."""
    patch: int = 1
    """Latent cells per side that the model's transformer is fed as one: channels (c, row, column), stride times this."""
    front_frames: Callable[[Config], int] = lambda config: 0
    """Copies of the first frame that belong in front of a clip; the class leaves that to its caller."""
    one_clip: bool = False
    """Encodes right only one clip per call."""
    decodes_clips: bool = False
    """Takes pictures to encode, but needs a whole clip and its length to decode."""
    frames_first: bool = False
    """Decodes to [B,T,3,H,W]."""
    always_tiled: bool = False
    """Has no untiled path."""


def _halvings(key: str) -> Callable[[Config], int]:
    return lambda config: 2 ** (len(config[key]) - 1)


def _value(key: str) -> Callable[[Config], int]:
    return lambda config: int(config[key])


def _product(key: str) -> Callable[[Config], int]:
    return lambda config: math.prod(config[key])


def _wan_spatial(config: Config) -> int:
    return int(2 ** len(config["temperal_downsample"]) * (config.get("patch_size") or 1))


def _wan_temporal(config: Config) -> int:
    return int(2 ** sum(config["temperal_downsample"]))


def _ltx(key: str, patch: str) -> Callable[[Config], int]:
    return lambda config: int(config.get(key) or config[patch] * 2 ** sum(config["spatio_temporal_scaling"]))


def _ltx2(key: str, patch: str, kinds: tuple[str, ...]) -> Callable[[Config], int]:
    def stride(config: Config) -> int:
        scaled = config["spatio_temporal_scaling"]
        scaled = [scaled] * len(config["downsample_type"]) if isinstance(scaled, bool) else scaled
        halvings = sum(kind in kinds for kind, on in zip(config["downsample_type"], scaled, strict=False) if on)
        return int(config.get(key) or config[patch] * 2**halvings)

    return stride


def _vidtok_levels(config: Config, key: str) -> int:
    given = config.get(key)
    if given is not None:
        return len(given)
    levels = len(config["ch_mult"])
    return levels - 1 if key == "spatial_ds" else 2


def _vidtok_frames(config: Config, stride: int) -> Rule:
    return Rule(start=1, step=stride) if config["is_causal"] else multiples(16)


def _allegro_tiles(config: Config) -> tuple[Rule, Rule]:
    side = int(config["sample_size"])
    return Rule(start=side, step=side - 120), Rule(start=side, step=side - 80)


_WAN_DOWN = {"temperal_downsample": [False, True, True]}
_WAN = Convention(spatial_stride=_wan_spatial, temporal_stride=_wan_temporal, defaults=_WAN_DOWN)
_LTX_DEFAULTS = {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}

TABLE: dict[str, Convention] = {
    "AutoencoderKL": Convention(
        spatial_stride=_halvings("block_out_channels"), images=True, defaults={"scaling_factor": 0.18215}
    ),
    "AutoencoderKLTemporalDecoder": Convention(
        spatial_stride=_halvings("block_out_channels"),
        images=True,
        decodes_clips=True,
        defaults={"scaling_factor": 0.18215},
    ),
    "AutoencoderTiny": Convention(
        spatial_stride=_halvings("encoder_block_out_channels"), images=True, has_moments=lambda config: False
    ),
    "AutoencoderDC": Convention(
        spatial_stride=_halvings("encoder_block_out_channels"), images=True, has_moments=lambda config: False
    ),
    # its transformer is fed 2x2 cells as one, normalised with the statistics of a batch norm
    "AutoencoderKLFlux2": Convention(
        spatial_stride=_halvings("block_out_channels"), images=True, patch=2, defaults={"batch_norm_eps": 1e-4}
    ),
    "AutoencoderKLMagvit": Convention(
        spatial_stride=_halvings("block_out_channels"),
        temporal_stride=lambda config: 2 ** (len(config["block_out_channels"]) - 2),
        defaults={"scaling_factor": 0.7125},
    ),
    "AutoencoderKLCogVideoX": Convention(
        spatial_stride=_halvings("block_out_channels"),
        temporal_stride=_value("temporal_compression_ratio"),
        defaults={"scaling_factor": 1.15258426, "temporal_compression_ratio": 4},
    ),
    # knows only tiles: 24 frames every 16, and 320 pixels every 200 down and 240 across
    "AutoencoderKLAllegro": Convention(
        spatial_stride=_halvings("block_out_channels"),
        temporal_stride=_value("temporal_compression_ratio"),
        frames=lambda config, stride: Rule(start=24, step=16),
        size=_allegro_tiles,
        one_clip=True,
        always_tiled=True,
        frames_first=True,
        defaults={"scaling_factor": 0.13, "temporal_compression_ratio": 4, "sample_size": 320},
    ),
    "AutoencoderKLHunyuanVideo": Convention(
        spatial_stride=_value("spatial_compression_ratio"),
        temporal_stride=_value("temporal_compression_ratio"),
        defaults={"scaling_factor": 0.476986, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLHunyuanVideo15": Convention(
        spatial_stride=_value("spatial_compression_ratio"),
        temporal_stride=_value("temporal_compression_ratio"),
        one_clip=True,
        defaults={"scaling_factor": 1.03682, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLLTXVideo": Convention(
        spatial_stride=_ltx("spatial_compression_ratio", "patch_size"),
        temporal_stride=_ltx("temporal_compression_ratio", "patch_size_t"),
        defaults=_LTX_DEFAULTS,
    ),
    "AutoencoderKLLTX2Video": Convention(
        spatial_stride=_ltx2("spatial_compression_ratio", "patch_size", ("spatial", "spatiotemporal", "conv")),
        temporal_stride=_ltx2("temporal_compression_ratio", "patch_size_t", ("temporal", "spatiotemporal", "conv")),
        defaults={
            "patch_size": 4,
            "patch_size_t": 1,
            "spatio_temporal_scaling": [True] * 4,
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        },
    ),
    "AutoencoderKLMochi": Convention(
        spatial_stride=_product("spatial_expansions"),
        temporal_stride=_product("temporal_expansions"),
        defaults={"spatial_expansions": [2, 2, 2], "temporal_expansions": [1, 2, 3]},
    ),
    "AutoencoderKLCosmos": Convention(
        spatial_stride=_value("spatial_compression_ratio"),
        temporal_stride=_value("temporal_compression_ratio"),
        has_moments=lambda config: False,
        defaults={"spatial_compression_ratio": 8, "temporal_compression_ratio": 8},
    ),
    "AutoencoderVidTok": Convention(
        spatial_stride=lambda config: 2 ** _vidtok_levels(config, "spatial_ds"),
        temporal_stride=lambda config: 2 ** _vidtok_levels(config, "tempo_ds"),
        frames=_vidtok_frames,
        has_moments=lambda config: config.get("regularizer") != "fsq",
        front_frames=lambda config: 2 ** _vidtok_levels(config, "tempo_ds") - 1 if config["is_causal"] else 0,
        defaults={"is_causal": True, "ch_mult": [1, 2, 4, 4]},
    ),
}


UNLISTED = Convention(spatial_stride=lambda config: 1)
"""A class without a row has no habits; its geometry is asked for."""


def complete(config: Config) -> dict[str, Any]:
    """The configuration with the values that its class would fill in where they matter here."""
    row = TABLE.get(config["_class_name"])
    return dict(row.defaults if row else {}) | {key: value for key, value in config.items() if value is not None}


def geometry(config: Config) -> Geometry:
    """Geometry of a class in the table, from its completed configuration."""
    row = TABLE[config["_class_name"]]
    spatial, temporal = row.spatial_stride(config) * row.patch, row.temporal_stride(config)
    if row.images:
        return plain_geometry(spatial, 1, multiples(1), chunk_frames=1)
    if row.size is None:
        return plain_geometry(spatial, temporal, row.frames(config, temporal))
    height, width = row.size(config)
    return Geometry(
        spatial_stride=spatial,
        temporal_stride=temporal,
        frames=row.frames(config, temporal),
        height=height,
        width=width,
    )


def latent_channels(config: Config) -> int:
    """Channels of a latent cell as the transformer is fed it."""
    name = next(key for key in ("latent_channels", "z_dim", "z_channels") if key in config)
    row = TABLE.get(config["_class_name"])
    return int(config[name]) * (row.patch**2 if row else 1)


def normalisation(
    config: Config, constants: Mapping[str, list[float]], sigma_data: float | None
) -> tuple[Statistics, Statistics]:
    """Shift and scale of ``(raw - shift) * scale``, per channel, or per channel and latent frame.

    ``constants`` are the tensors among the weights that hold statistics; ``sigma_data`` is the factor of the scheduler
    in whose scale the model's transformer works, where it has one (Cosmos).
    """
    channels = latent_channels(config)
    factor = float(config.get("scaling_factor") or 1.0)
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
    if len(mean) == channels:
        return tuple(mean), tuple(scale)
    return _rows(mean, channels), _rows(scale, channels)


def _rows(values: list[float], count: int) -> tuple[tuple[float, ...], ...]:
    length = len(values) // count
    return tuple(tuple(values[start : start + length]) for start in range(0, len(values), length))

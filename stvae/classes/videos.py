"""Rows of the classes that encode clips. Sources: diffusers 0.42, models/autoencoders/*.py. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from stvae.classes import minimax_h3, wan
from stvae.classes.convention import EIGHT_BITS, IMAGENET, Config, Convention, number_at, product_of, stride_of_levels
from stvae.geometry import SizeRule, multiples, power_of_two


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


def _kvae_temporal(config: Config) -> int:
    halvings = int(math.log2(config["temporal_compress_times"]))
    return power_of_two(min(halvings, len(config["ch_mult"]) - 1))


def _kandinsky6_temporal(config: Config) -> int:
    halvings = int(math.log2(config["temporal_compression_ratio"]))
    levels = len(config["encoder_block_out_channels"]) - 1
    return power_of_two(max(0, min(halvings, levels - config["temporal_compression_start_level"])))


_WAN = Convention(
    channels_last_on_gpus=True,
    spatial_stride=wan.spatial_stride,
    temporal_stride=wan.temporal_stride,
    frame_rule=wan.frame_rule,
    needs_statistics=True,
    defaults=wan.DEFAULTS,
)
_LTX_DEFAULTS = {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}

VIDEOS: dict[str, Convention] = {
    "AutoencoderKLMagvit": Convention(
        spatial_stride=stride_of_levels("block_out_channels"),
        temporal_stride=lambda config: power_of_two(len(config["block_out_channels"]) - 2),
        defaults={"scaling_factor": 0.7125},
    ),
    "AutoencoderKLCogVideoX": Convention(
        spatial_stride=stride_of_levels("block_out_channels"),
        temporal_stride=number_at("temporal_compression_ratio"),
        defaults={"scaling_factor": 1.15258426, "temporal_compression_ratio": 4},
    ),
    # it encodes only in tiles: 24 frames every 16 frames, 320 pixels every 200 pixels down and every 240 across
    "AutoencoderKLAllegro": Convention(
        spatial_stride=stride_of_levels("block_out_channels"),
        temporal_stride=number_at("temporal_compression_ratio"),
        frame_rule=lambda config, stride: SizeRule(start=24, step=16),
        size_rules=_allegro_size_rules,
        one_clip_per_call=True,
        tiling="always",
        decodes_frames_first=True,
        defaults={"scaling_factor": 0.13, "temporal_compression_ratio": 4, "sample_size": 320},
    ),
    "AutoencoderKLHunyuanVideo": Convention(
        spatial_stride=number_at("spatial_compression_ratio"),
        temporal_stride=number_at("temporal_compression_ratio"),
        defaults={"scaling_factor": 0.476986, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLHunyuanVideo15": Convention(
        spatial_stride=number_at("spatial_compression_ratio"),
        temporal_stride=number_at("temporal_compression_ratio"),
        one_clip_per_call=True,
        defaults={"scaling_factor": 1.03682, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4},
    ),
    "AutoencoderKLWan": _WAN,
    # Qwen-Image-Layered's takes the opacity too
    "AutoencoderKLQwenImage": dataclasses.replace(
        _WAN, adds_alpha=lambda config: config["input_channels"] == 4, defaults={**wan.DEFAULTS, "input_channels": 3}
    ),
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
        spatial_stride=product_of("spatial_expansions"),
        temporal_stride=product_of("temporal_expansions"),
        defaults={"spatial_expansions": [2, 2, 2], "temporal_expansions": [1, 2, 3]},
    ),
    "AutoencoderKLCosmos": Convention(
        spatial_stride=number_at("spatial_compression_ratio"),
        temporal_stride=number_at("temporal_compression_ratio"),
        has_moments=lambda config: False,
        statistics_per_frame=True,
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
    # its published latents are those of tiles
    "AutoencoderKLMiniMaxH3": Convention(
        spatial_stride=minimax_h3.spatial_stride,
        temporal_stride=minimax_h3.temporal_stride,
        pixels=IMAGENET,
        frame_rule=minimax_h3.frame_rule,
        chunk_frames=number_at("clip_length"),
        size_rules=minimax_h3.size_rules,
        one_clip_per_call=True,
        tiling="always",
        float32_modules=minimax_h3.FLOAT32_MODULES,
        needs_statistics=True,
        defaults=minimax_h3.DEFAULTS,
    ),
    # it returns zeros in place of the log-variance
    "AutoencoderKLKVAEVideo": Convention(
        spatial_stride=stride_of_levels("ch_mult"),
        temporal_stride=_kvae_temporal,
        has_moments=lambda config: False,
        lacks_logvar=True,
        defaults={"ch_mult": [1, 2, 4, 8], "temporal_compress_times": 4, "z_channels": 16},
    ),
    "Kandinsky6SRVAE": Convention(
        spatial_stride=stride_of_levels("encoder_block_out_channels"),
        temporal_stride=_kandinsky6_temporal,
        pixels=EIGHT_BITS,
        defaults={
            "latent_channels": 64,
            "encoder_block_out_channels": [16, 128, 256, 512, 1024],
            "temporal_compression_ratio": 4,
            "temporal_compression_start_level": 1,
            "scaling_factor": 0.910344004631042,
        },
    ),
}

"""The class that a configuration without ``_class_name`` seems to be for, to name it in a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCKS = {
    "DownEncoderBlock2D": "AutoencoderKL",
    "CogVideoXDownBlock3D": "AutoencoderKLCogVideoX",
    "HunyuanVideoDownBlock3D": "AutoencoderKLHunyuanVideo",
    "LTXVideoDownBlock3D": "AutoencoderKLLTXVideo",
    "LTXVideo095DownBlock3D": "AutoencoderKLLTXVideo",
    "LTX2VideoDownBlock3D": "AutoencoderKLLTX2Video",
    "AllegroDownBlock3D": "AutoencoderKLAllegro",
    "SpatialDownBlock3D": "AutoencoderKLMagvit",
}
"""Classes by the first of ``down_block_types``."""
FIELDS = {
    "temperal_downsample": "AutoencoderKLWan",
    "encoder_qkv_multiscales": "AutoencoderDC",
    "downsample_match_channel": "AutoencoderKLHunyuanVideo15",
    "temporal_expansions": "AutoencoderKLMochi",
    "batch_norm_eps": "AutoencoderKLFlux2",
    "num_encoder_blocks": "AutoencoderTiny",
}
"""Classes by a field that no other class has."""


def likely_class(config: Mapping[str, Any]) -> str:
    """Return the class of diffusers whose configuration this seems to be; ``AutoencoderKL`` if nothing tells."""
    for field, class_name in FIELDS.items():
        if field in config:
            return class_name
    blocks = config.get("down_block_types")
    first = blocks[0] if isinstance(blocks, list) and blocks else None
    return BLOCKS.get(first, "AutoencoderKL") if isinstance(first, str) else "AutoencoderKL"

"""Configurations of published VAEs, for files in original layouts, which hold none.

Each entry gives what differs from the defaults of the class in diffusers 0.42. Sources: the configurations that diffusers'
scripts/convert_*_to_diffusers.py write, and the ``config.json`` files of the models for ``scaling_factor`` and
``shift_factor``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published VAE."""

    title: str
    class_name: str
    config: dict[str, Any] = field(default_factory=dict)
    clue: str | None = None
    """Pattern of names of the file or of its tensors. It decides between models that differ in no shape."""


def _image_vae(**fields: Any) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return {**blocks, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2} | fields


def _image_vae_16(**fields: Any) -> dict[str, Any]:
    return _image_vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **fields)


def _deep_compression(levels: int, latent_channels: int, scaling_factor: float) -> dict[str, Any]:
    channels = [128, 256, 512, 512, 1024, 1024, 2048, 2048][:levels]
    types = ["ResBlock"] * 3 + ["EfficientViTBlock"] * (levels - 3)
    scales: list[list[int]] = [[] for _ in channels]
    return {
        "latent_channels": latent_channels,
        "encoder_block_types": types,
        "decoder_block_types": types,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": [0, 4, 8] + [2] * (levels - 3),
        "decoder_layers_per_block": [0, 5, 10] + [2] * (levels - 3),
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * (levels - 3),
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * (levels - 3),
        "scaling_factor": scaling_factor,
    }


# fmt: off
WAN_2_2 = {
    "base_dim": 160,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "decoder_base_dim": 256,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "patch_size": 2,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}
# fmt: on
LTX_VIDEO_091 = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
    "decoder_causal": False,
}
LTX_VIDEO_095 = {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True, True, True, True],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX_2_0 = {
    "timestep_conditioning": False,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX_2_3 = LTX_2_0 | {
    "block_out_channels": [256, 512, 1024, 1024],
    "decoder_block_out_channels": [256, 512, 512, 1024],
    "layers_per_block": [4, 6, 4, 2, 2],
    "decoder_layers_per_block": [4, 6, 4, 2, 2],
    "decoder_spatio_temporal_scaling": [True, True, True, True],
    "decoder_inject_noise": [False, False, False, False, False],
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
    "upsample_residual": [False, False, False, False],
    "upsample_factor": [2, 2, 1, 2],
    "decoder_spatial_padding_mode": "zeros",
}
SANA = {
    "latent_channels": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

PUBLISHED = (
    Published(title="Wan 2.1", class_name="AutoencoderKLWan"),
    Published(title="Wan 2.2 5B", class_name="AutoencoderKLWan", config=WAN_2_2),
    Published(title="LTX-Video 0.9.0", class_name="AutoencoderKLLTXVideo", config={"decoder_causal": False}),
    Published(title="LTX-Video 0.9.1", class_name="AutoencoderKLLTXVideo", config=LTX_VIDEO_091),
    Published(title="LTX-Video 0.9.5", class_name="AutoencoderKLLTXVideo", config=LTX_VIDEO_095),
    Published(title="LTX-2", class_name="AutoencoderKLLTX2Video", config=LTX_2_0),
    Published(title="LTX-2.3", class_name="AutoencoderKLLTX2Video", config=LTX_2_3),
    Published(title="HunyuanVideo", class_name="AutoencoderKLHunyuanVideo"),
    Published(title="HunyuanVideo 1.5", class_name="AutoencoderKLHunyuanVideo15"),
    Published(title="CogVideoX 2B", class_name="AutoencoderKLCogVideoX", clue=r"cogvideox-2b"),
    Published(
        title="CogVideoX 5B",
        class_name="AutoencoderKLCogVideoX",
        config={"scaling_factor": 0.7},
        clue=r"cogvideox-5b",
    ),
    Published(
        title="CogVideoX 1.5",
        class_name="AutoencoderKLCogVideoX",
        config={"scaling_factor": 0.7, "invert_scale_latents": True},
        clue=r"cogvideox1\.5",
    ),
    Published(title="Flux 2", class_name="AutoencoderKLFlux2"),
    Published(
        title="Stable Diffusion 1 and 2",
        class_name="AutoencoderKL",
        config=_image_vae(scaling_factor=0.18215),
        clue=r"cond_stage_model\.|vae-ft-|sd-vae|v1-5|v2-1",
    ),
    Published(
        title="SDXL",
        class_name="AutoencoderKL",
        config=_image_vae(scaling_factor=0.13025),
        clue=r"conditioner\.embedders\.|sdxl|sd_xl|sd-xl",
    ),
    Published(
        title="Stable Diffusion 3",
        class_name="AutoencoderKL",
        config=_image_vae_16(scaling_factor=1.5305, shift_factor=0.0609),
        clue=r"joint_blocks\.0\.|sd3",
    ),
    Published(
        title="Flux",
        class_name="AutoencoderKL",
        config=_image_vae_16(scaling_factor=0.3611, shift_factor=0.1159),
        clue=r"double_blocks\.0\.|^ae\.(safetensors|sft)$|flux",
    ),
    Published(title="Sana", class_name="AutoencoderDC", config=SANA),
    Published(
        title="DC-AE f32c32 (ImageNet)",
        class_name="AutoencoderDC",
        config=_deep_compression(6, 32, 0.3189),
        clue="dc-ae-f32c32-in",
    ),
    Published(
        title="DC-AE f32c32 (mix)",
        class_name="AutoencoderDC",
        config=_deep_compression(6, 32, 0.4552),
        clue="dc-ae-f32c32-mix",
    ),
    Published(
        title="DC-AE f64c128 (ImageNet)",
        class_name="AutoencoderDC",
        config=_deep_compression(7, 128, 0.2889),
        clue="dc-ae-f64c128-in",
    ),
    Published(
        title="DC-AE f64c128 (mix)",
        class_name="AutoencoderDC",
        config=_deep_compression(7, 128, 0.4538),
        clue="dc-ae-f64c128-mix",
    ),
    Published(
        title="DC-AE f128c512 (ImageNet)",
        class_name="AutoencoderDC",
        config=_deep_compression(8, 512, 0.4883),
        clue="dc-ae-f128c512-in",
    ),
    Published(
        title="DC-AE f128c512 (mix)",
        class_name="AutoencoderDC",
        config=_deep_compression(8, 512, 0.3620),
        clue="dc-ae-f128c512-mix",
    ),
)

"""Every diffusers autoencoder in our table, in a size that encodes in milliseconds. Diffusers itself saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

CONFIGS: dict[str, dict[str, Any]] = {
    # a class name, or a class name and a version if a class has models that differ in kind
    "AutoencoderKL": {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.13025,
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "latent_channels": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "scaling_factor": 0.41407,
    },
    "AutoencoderKLMagvit": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLAllegro": {
        "block_out_channels": (4, 4, 4, 4),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_size": 128,
    },
    "AutoencoderKLHunyuanVideo": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLHunyuanVideo15": {
        "block_out_channels": (16, 16, 16, 16, 16),
        "latent_channels": 4,
        "layers_per_block": 1,
    },
    "AutoencoderKLWan": {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "AutoencoderKLWan 2.2": {
        "base_dim": 4,
        "decoder_base_dim": 4,
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.01 * c for c in range(48)],
        "latents_std": [1 + 0.1 * c for c in range(48)],
    },
    "AutoencoderKLQwenImage": {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLCosmos": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
    },
    "AutoencoderVidTok": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "AutoencoderKLFlux2": {
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "latent_channels": 8,
        "layers_per_block": 1,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "down_block_out_channels": (8, 8, 8),
        "up_block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (32, 32, 32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 8,
        "sample_size": 64,
        "scaling_factor": 0.75289,
    },
    "AutoencoderKLHunyuanImageRefiner": {
        "block_out_channels": (16, 16, 16, 16),
        "latent_channels": 4,
        "layers_per_block": 1,
        "spatial_compression_ratio": 8,
    },
    "AutoencoderKLKVAE": {
        "channels": 32,
        "ch_mult": (1, 1, 2),
        "num_enc_blocks": 1,
        "num_dec_blocks": 1,
        "z_channels": 4,
    },
    "AutoencoderKLQwenImage21": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 8,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "scale_factor_spatial": 8,
        "latents_mean": [0.1 * c for c in range(8)],
        "latents_std": [1 + 0.1 * c for c in range(8)],
    },
    "AutoencoderKLQwenImage layered": {
        "base_dim": 4,
        "z_dim": 16,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "input_channels": 4,
    },
    "AutoencoderKLMiniMaxH3": {
        "latent_channels": 4,
        "block_out_channels": (4, 4, 8, 8),
        "layers_per_block": 1,
        "spatial_downsample_factors": (2, 2, 2, 2),
        "temporal_downsample_factors": (1, 2, 2, 1),
        "norm_num_groups": 2,
        "decoder_num_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 8,
        "latents_mean": (0.1, -0.2, 0.3, 0.4),
        "latents_std": (1.0, 2.0, 0.5, 1.5),
    },
    "AutoencoderKLKVAEVideo": {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 4},
    "Kandinsky6SRVAE": {
        "latent_channels": 4,
        "encoder_block_out_channels": (4, 8, 8, 8, 8),
        "decoder_block_out_channels": (4, 8, 8, 8, 8),
        "layers_per_block": 1,
    },
}


def make(name: str, seed: int = 0) -> Any:
    """Build a diffusers model with random weights and random statistics."""
    torch.manual_seed(seed)
    model = getattr(diffusers, name.split()[0])(**CONFIGS[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, buffer in model.named_buffers():
        if key in ("latents_mean", "bn.running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        if key in ("latents_std", "bn.running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def save(name: str, folder: Path) -> Path:
    """Write a checkpoint folder with ``save_pretrained`` and return it."""
    make(name).save_pretrained(folder)
    return folder

"""The 2D VAE that Open-Sora 1.2 applies frame by frame: SDXL's AutoencoderKL, scaled by 0.18215.

Shape suffixes: B batch, C channels, T frames, H and W pixels, h and w latent grid.
Source: Open-Sora v1.2, opensora/models/vae/vae.py (VideoAutoencoderKL).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

SCALING_FACTOR = 0.18215
"""Open-Sora's own factor; the scaling_factor in SDXL's configuration (0.13025) is not used."""

PIXELS_PER_CALL = 1 << 16
"""Small frames are encoded more at a time, up to so many pixels: fewer calls, wider convolutions."""

SDXL_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}


class SpatialVAE(nn.Module):
    """Frames to scaled 2D latents and back, at least ``frames_per_batch`` frames at a time."""

    def __init__(self, config: dict[str, Any] | None = None, *, frames_per_batch: int = 4) -> None:
        super().__init__()
        self.module = AutoencoderKL(**(config or SDXL_CONFIG))
        self.frames_per_batch = frames_per_batch

    def encode(self, x_BCTHW: Tensor, noise_BCThw: Tensor | None = None) -> Tensor:
        """Scaled latents (B, C, T, h, w): the posterior's mode, or where standard normal noise is given, that sample."""
        batch, _, num_frames = x_BCTHW.shape[:3]
        frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
        most = max(self.frames_per_batch, PIXELS_PER_CALL // (frames.shape[2] * frames.shape[3]))
        parts = frames.tensor_split(-(-len(frames) // most))
        posteriors = [self.module.encode(part).latent_dist for part in parts]
        z_BCThw = _per_clip(torch.cat([p.mean for p in posteriors]), batch, num_frames)
        if noise_BCThw is not None:
            z_BCThw = z_BCThw + noise_BCThw * _per_clip(torch.cat([p.std for p in posteriors]), batch, num_frames)
        return z_BCThw * SCALING_FACTOR

    def decode(self, z_BCThw: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W), about -1 to 1, of scaled latents."""
        batch, _, num_frames = z_BCThw.shape[:3]
        frames = (z_BCThw / SCALING_FACTOR).transpose(1, 2).flatten(0, 1)
        pixels = [self.module.decode(part).sample for part in frames.split(self.frames_per_batch)]
        return _per_clip(torch.cat(pixels), batch, num_frames)


def _per_clip(frames_NChw: Tensor, batch: int, num_frames: int) -> Tensor:
    clips_BTChw: Tensor = frames_NChw.unflatten(0, (batch, num_frames))
    return clips_BTChw.transpose(1, 2)

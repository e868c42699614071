"""The 2D VAE that Open-Sora 1.2 applies frame by frame: SDXL's AutoencoderKL with its latents scaled by 0.18215.

Shape suffixes: B clips, C channels, T frames, N = B * T pictures, H and W pixels, h and w latent grid.
Source: Open-Sora v1.2, opensora/models/vae/vae.py (VideoAutoencoderKL).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn

SCALING_FACTOR = 0.18215
"""Open-Sora's own factor; the scaling_factor in SDXL's configuration (0.13025) is not used."""

PIXELS_PER_CALL = 1 << 16
"""Number of pixels up to which small frames share one call. Fewer calls give wider convolutions."""

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
    """Frames to scaled 2D latents and back, in batches of at least ``frames_per_batch`` frames."""

    def __init__(self, config: dict[str, Any] | None = None, *, frames_per_batch: int = 4) -> None:
        super().__init__()
        if frames_per_batch < 1:
            raise ValueError(f"micro_batch_size is {frames_per_batch}; expected at least 1")
        self.module = AutoencoderKL(**(config or SDXL_CONFIG))
        self.frames_per_batch = frames_per_batch

    def encode(self, x_BCTHW: Tensor, noise_BCThw: Tensor | None = None) -> Tensor:
        """Return scaled latents (B, C, T, h, w): the mode of the posterior, or a sample of it if there is noise.

        noise_BCThw: standard normal values, in the shape of the result.
        """
        # Shapes:    (B, 3, T, H, W) -> N pictures (N, 3, H, W) -> (N, C, H/8, W/8) -> (B, C, T, H/8, W/8).
        # Invariant: a picture's latents do not depend on the other pictures of its call, so calls may be of any size.
        # Example:   2 clips of 17 frames at 64x64 are 34 pictures; 16 of them are 2**16 pixels, so there are 3 calls.
        batch = len(x_BCTHW)
        frames_NCHW = rearrange(x_BCTHW, "b c t h w -> (b t) c h w")
        frames_per_call = max(self.frames_per_batch, PIXELS_PER_CALL // (frames_NCHW.shape[2] * frames_NCHW.shape[3]))
        calls = frames_NCHW.tensor_split(-(-len(frames_NCHW) // frames_per_call))
        posteriors = [self.module.encode(call).latent_dist for call in calls]
        z_BCThw = _to_clips(torch.cat([p.mean for p in posteriors]), batch)
        if noise_BCThw is not None:
            z_BCThw = z_BCThw + noise_BCThw * _to_clips(torch.cat([p.std for p in posteriors]), batch)
        return z_BCThw * SCALING_FACTOR

    def decode(self, z_BCThw: Tensor) -> Tensor:
        """Return pixels (B, 3, T, H, W), in about [-1, 1], of scaled latents."""
        frames_NChw = rearrange(z_BCThw / SCALING_FACTOR, "b c t h w -> (b t) c h w")
        pixels = [self.module.decode(call).sample for call in frames_NChw.split(self.frames_per_batch)]
        return _to_clips(torch.cat(pixels), len(z_BCThw))


def _to_clips(frames_NChw: Tensor, batch: int) -> Tensor:
    return rearrange(frames_NChw, "(b t) c h w -> b c t h w", b=batch)

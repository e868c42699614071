"""Open-Sora 1.2's VAE: the spatial VAE on frames, then the temporal VAE on chunks of 17 frames.

Shape suffixes: B batch, C channels, T frames, t latent frames, H and W pixels, h and w latent grid.
Source: Open-Sora v1.2, opensora/models/vae/vae.py (VideoAutoencoderPipeline); arXiv:2412.20404.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stvae.geometry import Geometry
from stvae.spatial import SpatialVAE
from stvae.temporal import TemporalVAE

Run = Callable[[Tensor], Tensor]


class SpatioTemporalVAE(nn.Module):
    """Pixels in [-1, 1] to temporal moments and back. Chunks are independent of each other."""

    shift: Tensor
    scale: Tensor

    def __init__(self, spatial: SpatialVAE, temporal: TemporalVAE, geometry: Geometry) -> None:
        super().__init__()
        self.spatial_vae = spatial
        self.temporal_vae = temporal
        assert geometry.chunk_frames is not None
        self.geometry = geometry
        self.chunk_frames = geometry.chunk_frames
        channels = temporal.config.embed_dim
        self.register_buffer("shift", torch.zeros(1, channels, 1, 1, 1))
        self.register_buffer("scale", torch.ones(1, channels, 1, 1, 1))

    def encode(self, x_BCTHW: Tensor, noise_BCThw: Tensor | None = None) -> Tensor:
        """Moments (B, 2C, t, h, w) of a batch of clips: mean then log-variance, not normalised.

        x_BCTHW: float in [-1, 1], H and W multiples of 8, any T. ``noise_BCThw``: see SpatialVAE.encode.
        """
        return self.encode_spatial_latents(self.spatial_vae.encode(x_BCTHW, noise_BCThw))

    def encode_spatial_latents(self, z_BCThw: Tensor) -> Tensor:
        """Temporal moments (B, 2C, t, h, w) of 2D latents: whole chunks of all clips in one batch, then the tails."""
        num_chunks = z_BCThw.shape[2] // self.chunk_frames
        encode = self.temporal_vae.encode
        return _by_chunk(z_BCThw, self.chunk_frames, num_chunks, encode, encode)

    def decode(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        """Pixels (B, 3, num_frames, H, W), about -1 to 1, of raw (not normalised) latents."""
        num_chunks, tail_frames = divmod(num_frames, self.chunk_frames)
        frames_BCThw = _by_chunk(
            z_BCthw,
            self.geometry.latents_per_chunk(num_frames),
            num_chunks,
            lambda chunk: self.temporal_vae.decode(chunk, self.chunk_frames),
            lambda tail: self.temporal_vae.decode(tail, tail_frames),
        )
        return self.spatial_vae.decode(frames_BCThw)


def _by_chunk(x_BCThw: Tensor, size: int, count: int, run_whole: Run, run_tail: Run) -> Tensor:
    """Run ``count`` chunks of every clip as one batch, what is left of every clip as another, and join them in time."""
    parts = []
    if count:
        whole = x_BCThw[:, :, : size * count].unflatten(2, (count, size)).transpose(1, 2).flatten(0, 1)
        parts.append(run_whole(whole).unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
    if x_BCThw.shape[2] > size * count:
        parts.append(run_tail(x_BCThw[:, :, size * count :]))
    return torch.cat(parts, dim=2)

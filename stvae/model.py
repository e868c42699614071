"""Open-Sora 1.2's VAE: the spatial VAE on frames, then the temporal VAE on chunks of 17 frames.

Shape suffixes: B batch, C channels, T frames, t latent frames, H and W pixels, h and w latent grid.
Source: Open-Sora v1.2, opensora/models/vae/vae.py (VideoAutoencoderPipeline); arXiv:2412.20404.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from stvae.geometry import Geometry
from stvae.spatial import SpatialVAE
from stvae.temporal import TemporalVAE

ChunkFunction = Callable[[Tensor], Tensor]


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
        """Return moments (B, 2C, t, h, w) of a batch of clips: mean then log-variance, not normalized.

        x_BCTHW: float in [-1, 1], H and W multiples of 8, any T. noise_BCThw: see ``SpatialVAE.encode``.
        """
        return self.encode_spatial_latents(self.spatial_vae.encode(x_BCTHW, noise_BCThw))

    def encode_spatial_latents(self, z_BCThw: Tensor) -> Tensor:
        """Return temporal moments (B, 2C, t, h, w) of 2D latents."""
        num_chunks = z_BCThw.shape[2] // self.chunk_frames
        encode = self.temporal_vae.encode
        return _map_chunks(z_BCThw, self.chunk_frames, num_chunks, encode, encode)

    def decode(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        """Return pixels (B, 3, num_frames, H, W), in about [-1, 1], of raw (not normalized) latents."""
        num_chunks, tail_frames = divmod(num_frames, self.chunk_frames)
        frames_BCThw = _map_chunks(
            z_BCthw,
            self.geometry.latents_per_chunk(num_frames),
            num_chunks,
            lambda chunk: self.temporal_vae.decode(chunk, self.chunk_frames),
            lambda tail: self.temporal_vae.decode(tail, tail_frames),
        )
        return self.spatial_vae.decode(frames_BCThw)


def _map_chunks(
    x_BCThw: Tensor, chunk_size: int, num_chunks: int, run_chunks: ChunkFunction, run_tail: ChunkFunction
) -> Tensor:
    """Run the whole chunks of all clips as one batch and the shorter tails as another, then join them in time."""
    # Shapes:    (B, C, n * size + rest, h, w) -> (B * n, C, size, h, w) and (B, C, rest, h, w) -> (B, C', t, h, w).
    # Invariant: each output frame depends on the frames of its own chunk only.
    # Example:   2 clips of 40 frames in chunks of 17: one call with 4 chunks of 17, one call with 2 tails of 6.
    parts = []
    whole_frames = chunk_size * num_chunks
    if num_chunks:
        chunks = rearrange(x_BCThw[:, :, :whole_frames], "b c (n t) h w -> (b n) c t h w", n=num_chunks)
        parts.append(rearrange(run_chunks(chunks), "(b n) c t h w -> b c (n t) h w", n=num_chunks))
    if x_BCThw.shape[2] > whole_frames:
        parts.append(run_tail(x_BCThw[:, :, whole_frames:]))
    return torch.cat(parts, dim=2)

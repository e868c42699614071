"""The causal temporal VAE of Open-Sora 1.2: 3D convolutions over 2D latents that shorten time by 4, not space.

Shape suffixes: B batch, C channels, T frames, t latent frames, h and w latent grid.
Parameter names equal those of the published checkpoint.
Source: Open-Sora v1.2, opensora/models/vae/vae_temporal.py; arXiv:2412.20404.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalConfig:
    """Sizes of the temporal VAE; the defaults are those of the published type ``VAE_Temporal_SD``."""

    in_out_channels: int = 4
    latent_embed_dim: int = 4
    embed_dim: int = 4
    filters: int = 128
    num_res_blocks: int = 4
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    num_groups: int = 32

    @property
    def temporal_stride(self) -> int:
        """Number of pixel frames per latent frame."""
        return int(2 ** sum(self.temporal_downsample))


class CausalConv3d(nn.Module):
    """A 3D convolution in which an output frame depends only on input frames of the same time or earlier."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride_t: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.time_pad = kernel - stride_t  # a larger stride needs fewer frames of history
        space_pad = kernel // 2
        self.conv = nn.Conv3d(
            c_in, c_out, kernel, stride=(stride_t, 1, 1), padding=(0, space_pad, space_pad), bias=bias
        )

    def forward(self, x_BCThw: Tensor) -> Tensor:
        # Shapes:    (B, C, T, h, w) -> (B, C', T // stride_t, h, w); zero frames are added in front only.
        # Invariant: output frame i sees input frames up to (i + 1) * stride_t - 1 only.
        # Example:   kernel 3, stride 2, T = 4: one zero frame in front, and outputs see frames [0, 1] and [1, 2, 3].
        if self.time_pad:
            x_BCThw = F.pad(x_BCThw, (0, 0, 0, 0, self.time_pad, 0))
        out: Tensor = self.conv(x_BCThw)
        return out


class ResBlock(nn.Module):
    """Two convolutions with group norm, plus a shortcut. Group norm averages over the whole chunk, including time."""

    def __init__(self, c_in: int, c_out: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, c_in)
        self.conv1 = CausalConv3d(c_in, c_out, 3, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, c_out)
        self.conv2 = CausalConv3d(c_out, c_out, 3, bias=False)
        self.conv3 = CausalConv3d(c_in, c_out, 1, bias=False) if c_in != c_out else None

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x_BCThw)))
        y = self.conv2(F.silu(self.norm2(y)))
        out: Tensor = y + (x_BCThw if self.conv3 is None else self.conv3(x_BCThw))
        return out


def _res_stack(c_in: int, c_out: int, count: int, num_groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out, num_groups) for i in range(count))


class TemporalEncoder(nn.Module):
    """2D latents to features. Each True in ``temporal_downsample`` halves the number of frames."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = [config.filters * m for m in config.channel_multipliers]
        self.conv_in = CausalConv3d(config.in_out_channels, config.filters, 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _res_stack(widths[max(i - 1, 0)], width, config.num_res_blocks, config.num_groups)
            for i, width in enumerate(widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(widths[i], widths[i], 3, stride_t=2) if down else nn.Identity()
            for i, down in enumerate(config.temporal_downsample)
        )
        self.res_blocks = _res_stack(widths[-1], widths[-1], config.num_res_blocks, config.num_groups)
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * config.latent_embed_dim, 1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        x = self.conv_in(x_BCThw)
        for i, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        for block in self.res_blocks:
            x = block(x)
        out: Tensor = self.conv2(F.silu(self.norm1(x)))
        return out


class TemporalDecoder(nn.Module):
    """Latents to 2D latents. Doubles the number of frames at each level where the encoder halved it."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = [config.filters * m for m in config.channel_multipliers]
        self.upsamples = config.temporal_downsample
        self.conv1 = CausalConv3d(config.latent_embed_dim, widths[-1], 3)
        self.res_blocks = _res_stack(widths[-1], widths[-1], config.num_res_blocks, config.num_groups)
        self.block_res_blocks = nn.ModuleList(
            _res_stack(widths[min(i + 1, len(widths) - 1)], width, config.num_res_blocks, config.num_groups)
            for i, width in enumerate(widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(widths[i + 1], 2 * widths[i + 1], 3) if up else nn.Identity()
            for i, up in enumerate(self.upsamples)
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], config.in_out_channels, 3)

    def forward(self, z_BCthw: Tensor) -> Tensor:
        """Return 2D latents (B, C, T, h, w) of temporal latents, T = t times the temporal stride."""
        # Shapes:    a level that doubles time turns (B, 2C, t, h, w) into (B, C, 2t, h, w).
        # Invariant: output frames 2i and 2i + 1 are made from frames up to i only, except for the group norms.
        # Example:   channels [a0, a1, b0, b1] of one frame become frames [a0, b0] and [a1, b1].
        x = self.conv1(z_BCthw)
        for block in self.res_blocks:
            x = block(x)
        for i in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[i]:  # type: ignore[attr-defined]
                x = block(x)
            if i > 0:
                x = self.conv_blocks[i - 1](x)
                if self.upsamples[i - 1]:
                    x = rearrange(x, "b (c two) t h w -> b c (t two) h w", two=2)
        out: Tensor = self.conv_out(F.silu(self.norm1(x)))
        return out


class TemporalVAE(nn.Module):
    """Encoder, decoder and their 1x1x1 quantisation convolutions. Either half may be None if it is not needed."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: TemporalEncoder | None = TemporalEncoder(config)
        self.quant_conv: CausalConv3d | None = CausalConv3d(2 * config.latent_embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv: CausalConv3d | None = CausalConv3d(config.embed_dim, config.latent_embed_dim, 1)
        self.decoder: TemporalDecoder | None = TemporalDecoder(config)

    def encode(self, x_BCThw: Tensor) -> Tensor:
        """Return moments (B, 2C, ceil(T / stride), h, w) of one chunk: mean then log-variance."""
        # Shapes:    (B, C, T, h, w) -> (B, C, pad + T, h, w) -> (B, 2C, (pad + T) / stride, h, w).
        # Invariant: zero frames are added in front, so only the first latent frame can cover fewer than stride frames.
        # Example:   T = 17, stride 4: 3 zero frames in front and 5 latent frames; the first covers frame 0 alone.
        assert self.encoder is not None and self.quant_conv is not None
        pad = -x_BCThw.shape[2] % self.config.temporal_stride
        moments: Tensor = self.quant_conv(self.encoder(F.pad(x_BCThw, (0, 0, 0, 0, pad, 0))))
        return moments

    def decode(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        """Return 2D latents (B, C, num_frames, h, w) of one chunk, without the frames that stand for the padding."""
        assert self.decoder is not None and self.post_quant_conv is not None
        x: Tensor = self.decoder(self.post_quant_conv(z_BCthw))
        return x[:, :, -num_frames % self.config.temporal_stride :]

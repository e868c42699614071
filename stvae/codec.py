"""The one interface the pipeline sees: pixels to moments, latents to pixels, and the normalisation between.

Shape suffixes: B batch, C latent channels, T frames, H and W pixels, t, h and w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stvae import weights
from stvae.card import Card, open_sora_geometry, read_card, temporal_sizes
from stvae.geometry import ShapeError
from stvae.model import SpatioTemporalVAE
from stvae.spatial import SpatialVAE
from stvae.temporal import TemporalConfig, TemporalVAE

Half = Literal["both", "encoder", "decoder"]

_UNUSED: dict[Half, tuple[str, ...]] = {
    "both": (),
    "encoder": (
        "spatial_vae.module.decoder",
        "spatial_vae.module.post_quant_conv",
        "temporal_vae.decoder",
        "temporal_vae.post_quant_conv",
    ),
    "decoder": (
        "spatial_vae.module.encoder",
        "spatial_vae.module.quant_conv",
        "temporal_vae.encoder",
        "temporal_vae.quant_conv",
    ),
}


def load_codec(codec: str | Path, *, device: str = "cpu", dtype: str = "float32", half: Half = "both") -> Codec:
    """The codec of a checkpoint folder, given by name, path or URL.

    ``dtype`` is the precision it computes in. ``half="encoder"`` reads and keeps only what encoding needs. Raises
    WeightsError if the folder is incomplete or its keys do not fit, UnknownCodec if the class is not known.
    """
    folder = weights.find_folder(str(codec))
    card = read_card(str(folder))
    with torch.device("meta"):
        model = build_open_sora(weights.read_config(folder))
    weights.load(model, folder, _UNUSED[half])
    return Codec(card, model.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False))


def build_open_sora(config: dict[str, Any]) -> SpatioTemporalVAE:
    """The untrained model of an Open-Sora 1.2 configuration; the published one names only types."""
    spatial = SpatialVAE(config["vae_2d"].get("config"), frames_per_batch=config["vae_2d"].get("micro_batch_size") or 4)
    return SpatioTemporalVAE(spatial, TemporalVAE(TemporalConfig(**temporal_sizes(config))), open_sora_geometry(config))


class Codec:
    """A frozen VAE. Raw latents go in and out; ``normalize`` gives what a diffusion transformer trains on."""

    def __init__(self, card: Card, model: SpatioTemporalVAE) -> None:
        self.card = card
        self.model = model
        parameter = next(model.parameters())
        self.device = parameter.device
        self.dtype = parameter.dtype

    @torch.inference_mode()
    def encode(self, pixels_BCTHW: Tensor, *, noise_seeds: Sequence[int] | None = None) -> Tensor:
        """Moments (B, 2C, t, h, w) in float32 of uint8 RGB clips (B, 3, T, H, W): mean then log-variance, raw.

        The spatial posterior is taken at its mode, or sampled with one seed per clip where ``noise_seeds`` is given.
        Raises ShapeError where the clip does not fit the codec.
        """
        if pixels_BCTHW.dtype != torch.uint8 or pixels_BCTHW.ndim != 5 or pixels_BCTHW.shape[1] != 3:
            raise ShapeError(
                f"encode takes uint8 pixels [B,3,T,H,W], got {pixels_BCTHW.dtype} {list(pixels_BCTHW.shape)}"
            )
        x_BCTHW = pixels_BCTHW.to(self.device, non_blocking=True).float().div_(127.5).sub_(1).to(self.dtype)
        noise_BCThw = None if noise_seeds is None else self._spatial_noise(pixels_BCTHW.shape, noise_seeds)
        return self.model.encode(x_BCTHW, noise_BCThw).float()

    @torch.inference_mode()
    def decode(self, latents_BCthw: Tensor, num_frames: int) -> Tensor:
        """Pixels uint8 (B, 3, T, H, W) of raw latents (B, C, t, h, w), T = ``num_frames``."""
        x_BCTHW = self.model.decode(latents_BCthw.to(self.device, self.dtype), num_frames).float()
        return x_BCTHW.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

    def normalize(self, latents_BCthw: Tensor) -> Tensor:
        """``(raw - shift) * scale`` per channel: what the model's own transformer is fed."""
        shift, scale = self._per_channel(latents_BCthw)
        return (latents_BCthw - shift) * scale

    def denormalize(self, latents_BCthw: Tensor) -> Tensor:
        """The raw latents of normalised ones."""
        shift, scale = self._per_channel(latents_BCthw)
        return latents_BCthw / scale + shift

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent (t, h, w) of pixels (T, H, W), as integers; ShapeError names the nearest size that fits."""
        return self.card.geometry.latent_size(size)

    def _per_channel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = (
            torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)
            for values in (self.card.shift, self.card.scale)
        )
        return shift, scale

    def _spatial_noise(self, pixels_shape: torch.Size, seeds: Sequence[int]) -> Tensor:
        """Standard normal noise for the 2D latents, made on the CPU so that a clip's noise is the same everywhere."""
        _, _, num_frames, height, width = pixels_shape
        stride = self.card.geometry.spatial_stride
        shape = (self.card.latent_channels, num_frames, height // stride, width // stride)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.device, self.dtype)

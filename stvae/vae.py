"""The interface that the pipeline uses: pixels to moments, latents to pixels, and normalization in between.

Shape suffixes: B batch, C latent channels, T frames, H and W pixels, t, h and w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stvae import weights
from stvae.autoencoder import Autoencoder, load_autoencoder
from stvae.card import OPEN_SORA_CLASS, Card, open_sora_geometry, read_card, temporal_sizes
from stvae.checkpoints.bounded_build import build_bounded
from stvae.classes.convention import FROM_MINUS_ONE_TO_ONE
from stvae.classes.pixels import to_model_range, to_uint8
from stvae.geometry import ShapeError
from stvae.model import SpatioTemporalVAE
from stvae.normalization import denormalize, normalize
from stvae.numerics import exact_numerics
from stvae.spatial import SpatialVAE
from stvae.temporal import TemporalConfig, TemporalVAE

Half = Literal["encoder", "decoder"]
Model = SpatioTemporalVAE | Autoencoder

_UNUSED: dict[Half | None, tuple[str, ...]] = {
    None: (),
    "encoder": ("decoder", "post_quant_conv"),
    "decoder": ("encoder", "quant_conv"),
}
"""Submodules that each half does not need."""


def load_vae(
    vae: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    only: Half | None = None,
    compiled: bool = False,
    autotune: bool = False,
    unlisted: bool = False,
) -> VAE:
    """Load the VAE of a checkpoint, given by name, path or URL of a folder or file.

    ``dtype`` is the precision of its computations; MiniMax-H3 always encodes in float32. ``only="encoder"`` reads and
    keeps only what encoding needs. ``compiled`` runs the encoder through torch.compile, which compiles each new shape when
    it first comes. ``autotune`` lets cuDNN try its algorithms on each new shape and keep the fastest, which may be another
    one in the next process, with other last bits. ``unlisted`` accepts a class of diffusers without a row in our table;
    ``card.assumed`` then says what was assumed of it.

    Raises WeightsError if the checkpoint is incomplete or its keys do not fit, UnknownVAE if the class is not known.
    """
    checkpoint = weights.find_checkpoint(str(vae))
    card = read_card(str(checkpoint), unlisted=unlisted)
    model = _load_model(checkpoint, card, only)
    if isinstance(model, Autoencoder):
        model.cast(getattr(torch, dtype))
    else:
        model.to(dtype=getattr(torch, dtype))
    model = model.to(device=device).eval().requires_grad_(False)
    arrange_convolutions(model)
    if compiled:
        compile_encoders(model)
    return VAE(card, model, autotune=autotune)


def _load_model(checkpoint: Path, card: Card, only: Half | None) -> Model:
    if card.class_name != OPEN_SORA_CLASS:
        return load_autoencoder(checkpoint, card, _UNUSED[only])
    config, num_tensors = weights.read_config(checkpoint), len(weights.read_headers(checkpoint))
    with torch.device("meta"):
        model = build_bounded(lambda: build_open_sora(config), num_tensors, weights.config_name(checkpoint))
    parents = ("spatial_vae.module", "temporal_vae")
    weights.load_weights(model, checkpoint, tuple(f"{parent}.{name}" for parent in parents for name in _UNUSED[only]))
    return model


def build_open_sora(config: dict[str, Any]) -> SpatioTemporalVAE:
    """Build the untrained model of an Open-Sora 1.2 configuration. The published one names types without sizes."""
    spatial = SpatialVAE(config["vae_2d"].get("config"), frames_per_batch=config["vae_2d"].get("micro_batch_size") or 4)
    return SpatioTemporalVAE(spatial, TemporalVAE(TemporalConfig(**temporal_sizes(config))), open_sora_geometry(config))


class VAE:
    """A frozen VAE. Raw latents go in and out; ``normalize`` turns them into what a diffusion transformer trains on.

    Only one thread may use it at a time, because some models keep frames of the call in progress. ``encode`` and ``decode``
    set PyTorch for exact, repeatable results and restore its settings afterwards: see ``numerics.py``.
    """

    def __init__(self, card: Card, model: Model, *, autotune: bool = False) -> None:
        self.autotune = autotune
        self.card = card
        self.model = model
        self._pixel_scale = model.convention.pixels if isinstance(model, Autoencoder) else FROM_MINUS_ONE_TO_ONE
        parameter = next(model.parameters())  # the encoder's if there is one, whose type pixels must have
        self.device = parameter.device
        self.dtype = parameter.dtype
        self._upload_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def upload(self, pixels: Tensor) -> Tensor:
        """Copy the pixels to the VAE's device. A GPU copies them from pinned memory while it computes."""
        if self._upload_stream is None or pixels.device == self.device:
            return pixels.to(self.device)
        with torch.cuda.stream(self._upload_stream):
            on_device = pixels.pin_memory().to(self.device, non_blocking=True)
        torch.cuda.current_stream(self.device).wait_stream(self._upload_stream)
        on_device.record_stream(torch.cuda.current_stream(self.device))
        return on_device

    @torch.inference_mode()
    def encode(self, pixels_BCTHW: Tensor, *, noise_seeds: Sequence[int] | None = None, tiled: bool = False) -> Tensor:
        """Return raw moments (B, 2C, t, h, w), float32, of uint8 RGB clips (B, 3, T, H, W): mean then log-variance.

        The result is means only (B, C, t, h, w) if the VAE has no posterior (``card.has_moments``). Open-Sora's spatial
        posterior is taken at its mode, or sampled with one seed per clip if ``noise_seeds`` is given. ``tiled`` needs
        less memory but blends the seams; see ``can_tile``. Raises ShapeError if the clip does not fit the VAE.
        """
        if pixels_BCTHW.dtype != torch.uint8 or pixels_BCTHW.ndim != 5 or pixels_BCTHW.shape[1] != 3:
            raise ShapeError(
                f"encode expects uint8 pixels [B,3,T,H,W], got {pixels_BCTHW.dtype} {list(pixels_BCTHW.shape)}"
            )
        x_BCTHW = to_model_range(self.upload(pixels_BCTHW), self._pixel_scale).to(self.dtype)
        size = self.latent_size((x_BCTHW.shape[2], x_BCTHW.shape[3], x_BCTHW.shape[4]))
        noise_BCThw = None if noise_seeds is None else self._spatial_noise(pixels_BCTHW.shape, noise_seeds)
        tiles = self.model.tiled() if tiled and isinstance(self.model, Autoencoder) else nullcontext()
        with exact_numerics(autotune=self.autotune), tiles:
            moments = self.model.encode(x_BCTHW, noise_BCThw).float()
        expected = (len(x_BCTHW), self.card.stored_channels, *size)
        if moments.shape != expected:
            raise ShapeError(
                f"{self.card.class_name} encoded {list(x_BCTHW.shape)} to {list(moments.shape)}"
                f"{' in tiles' if tiled else ''}, but its card expects {list(expected)}; "
                "correct the row of the class in stvae/classes"
            )
        return moments

    @torch.inference_mode()
    def decode(self, latents_BCthw: Tensor, num_frames: int) -> Tensor:
        """Return uint8 pixels (B, 3, T, H, W) of raw latents (B, C, t, h, w), T = ``num_frames``."""
        with exact_numerics(autotune=self.autotune):
            x_BCTHW = self.model.decode(latents_BCthw.to(self.device, self.dtype), num_frames).float()
        return to_uint8(x_BCTHW, self._pixel_scale)

    @property
    def can_tile(self) -> bool:
        """True if ``encode`` works both with and without tiles."""
        return isinstance(self.model, Autoencoder) and self.model.can_tile

    def normalize(self, latents_BCthw: Tensor) -> Tensor:
        """Return ``(raw - shift) * scale``, the input of the model's own transformer."""
        return normalize(latents_BCthw, self.card)

    def denormalize(self, latents_BCthw: Tensor) -> Tensor:
        """Return the raw latents of normalized ones."""
        return denormalize(latents_BCthw, self.card)

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the latent (t, h, w) of pixels (T, H, W). Raises ShapeError, naming the nearest size that fits."""
        return self.card.geometry.latent_size(size)

    def _spatial_noise(self, pixels_shape: torch.Size, seeds: Sequence[int]) -> Tensor:
        """Draw standard normal noise for the 2D latents. The CPU draws it, so a clip has the same noise on every device."""
        _, _, num_frames, height, width = pixels_shape
        stride = self.card.geometry.spatial_stride
        shape = (self.card.latent_channels, num_frames, height // stride, width // stride)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.device, self.dtype)


def compile_encoders(model: nn.Module) -> None:
    """Run the encoders of a model through torch.compile. Each new shape is compiled when it first comes."""
    for name, module in model.named_modules():
        _replace_numpy_numbers(module)
        if name.rpartition(".")[2] == "encoder":
            module.compile(dynamic=False)


def _replace_numpy_numbers(module: nn.Module) -> None:
    """Turn a module's own attributes that are NumPy numbers into Python's. torch.compile fails on a NumPy bool."""
    for name, value in list(vars(module).items()):
        if isinstance(value, np.generic):
            setattr(module, name, value.item())


def arrange_convolutions(model: Model) -> None:
    """Store the weights of convolutions in the order that is fastest on the model's device.

    On CPUs that is channels-last. On GPUs it is PyTorch's own order for most models: convolutions are faster with
    channels-last weights, but group norms then copy every tensor to the other order and back.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu and not (isinstance(model, Autoencoder) and model.convention.channels_last_on_gpus):
        return
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.data = module.weight.data.contiguous(memory_format=formats[module.weight.ndim])

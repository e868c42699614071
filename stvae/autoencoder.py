"""Any autoencoder of diffusers behind two calls: pixels to moments, and latents to pixels.

Shape suffixes: B batch, N pictures, C channels, T frames, t latent frames, H and W pixels, h and w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from stvae import conventions, weights
from stvae.card import Card, UnknownVAE

PICTURES_PER_CALL = 8
"""Frames that a VAE for pictures takes at once; bounds memory."""


def build(config: dict[str, Any]) -> Any:
    """The untrained model of a diffusers configuration; UnknownVAE for a class that this diffusers does not have."""
    model_class = getattr(diffusers, config["_class_name"], None)
    if model_class is None:
        raise UnknownVAE(f"diffusers {diffusers.__version__} has no {config['_class_name']}")
    return model_class.from_config(config)


def load(folder: Path, card: Card, unused: tuple[str, ...]) -> Autoencoder:
    """The model of a checkpoint folder, without its parts named in ``unused``. WeightsError as ``weights.load``."""
    config = weights.read_config(folder)
    with torch.device("meta"):
        model = build(config)
    parts = tuple(name for name in unused if getattr(model, name, None) is not None)
    weights.load(model, folder, parts)
    for name in parts:
        setattr(model, name, nn.Identity())  # some classes look into both halves whatever they do
    if any(buffer.is_meta for buffer in model.buffers()):  # constants that are in no checkpoint
        made = dict(build(config).named_buffers())
        for name, buffer in list(model.named_buffers()):
            if buffer.is_meta:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, made[name])
    return Autoencoder(model, card, conventions.complete(config))


def posterior(encoded: Any) -> tuple[Tensor, Tensor | None]:
    """Mean and log-variance of what a class's ``encode`` returns; None where it has no posterior."""
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None and hasattr(distribution, "logvar"):
        return distribution.mean, distribution.logvar
    if distribution is not None:
        return distribution.mode(), None
    latents: Tensor = encoded[0]  # a tuple (VidTok's quantised form), or an output of one field
    return latents, None


def forget(model: nn.Module) -> None:
    """Drop what a call that failed half-way left behind: EasyAnimate's convolutions keep frames."""
    for module in model.modules():
        if getattr(module, "prev_features", None) is not None:
            module.prev_features = None  # type: ignore[assignment]


class Autoencoder(nn.Module):
    """Pixels in [-1, 1] to moments (or means) and back, whatever the class's own habits are."""

    def __init__(self, model: Any, card: Card, config: conventions.Config) -> None:
        super().__init__()
        self.model = model
        self.images = card.geometry.chunk_frames == 1
        self.config = config
        self.row = conventions.TABLE.get(card.class_name, conventions.UNLISTED)
        self.front_frames = self.row.front_frames(config)
        if self.row.always_tiled:
            model.enable_tiling()

    def encode(self, x_BCTHW: Tensor, noise_BCThw: Tensor | None = None) -> Tensor:
        """Mean then log-variance (B, 2C, t, h, w), or the mean alone. ``noise_BCThw`` has no meaning here."""
        assert noise_BCThw is None
        if self.images:
            frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
            parts = [self._moments(part) for part in frames.split(PICTURES_PER_CALL)]
            return _clips(torch.cat(parts), len(x_BCTHW))
        if self.front_frames:
            x_BCTHW = torch.cat([x_BCTHW[:, :, :1].expand(-1, -1, self.front_frames, -1, -1), x_BCTHW], dim=2)
        return torch.cat([self._moments(part) for part in self._calls(x_BCTHW)])

    def decode(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        """Pixels (B, 3, num_frames, H, W), about -1 to 1, of raw latents."""
        batch = len(z_BCthw)
        if not self.images:
            arguments = {}
            if self.config.get("timestep_conditioning"):  # LTX: the noise level of the latents
                arguments["temb"] = torch.zeros(batch, device=z_BCthw.device, dtype=z_BCthw.dtype)
            parts = [_pixels(self.model.decode(z, **arguments)) for z in self._calls(z_BCthw)]
            pixels = torch.cat(parts)
            return (pixels.transpose(1, 2) if self.row.frames_first else pixels)[:, :, -num_frames:]
        frames = _unpatched(z_BCthw.transpose(1, 2).flatten(0, 1), self.row.patch)
        if self.row.decodes_clips:
            return _clips(_pixels(self.model.decode(frames, num_frames=num_frames)), batch)
        parts = [_pixels(self.model.decode(part)) for part in frames.split(PICTURES_PER_CALL)]
        return _clips(torch.cat(parts), batch)

    @property
    def can_tile(self) -> bool:
        """Whether there is a tiled path beside the usual one."""
        return hasattr(self.model, "use_tiling") and not self.row.always_tiled

    @contextmanager
    def tiled(self) -> Iterator[None]:
        """Encode in tiles meanwhile: less memory, and blended seams instead of the exact values."""
        self.model.enable_tiling()
        try:
            yield
        finally:
            self.model.disable_tiling()

    def _calls(self, x_B: Tensor) -> tuple[Tensor, ...]:
        """The batch as the class can take it."""
        return x_B.split(1) if self.row.one_clip else (x_B,)

    def _moments(self, x: Tensor) -> Tensor:
        forget(self.model)
        mean, logvar = posterior(self.model.encode(x))
        parts = [_patched(part, self.row.patch) for part in (mean, logvar) if part is not None]
        return torch.cat(parts, dim=1)


def _clips(pictures_NChw: Tensor, batch: int) -> Tensor:
    clips_BTChw: Tensor = pictures_NChw.unflatten(0, (batch, -1))
    return clips_BTChw.transpose(1, 2)


def _pixels(decoded: Any) -> Tensor:
    """What a class's ``decode`` returns, as the tensor in it."""
    pixels: Tensor = decoded if isinstance(decoded, Tensor) else decoded[0]
    return pixels


def _patched(z_NChw: Tensor, patch: int) -> Tensor:
    """Cells of ``patch`` by ``patch`` as one, channels in the order (c, row, column)."""
    return z_NChw if patch == 1 else nn.functional.pixel_unshuffle(z_NChw, patch)


def _unpatched(z_NChw: Tensor, patch: int) -> Tensor:
    return z_NChw if patch == 1 else nn.functional.pixel_shuffle(z_NChw, patch)

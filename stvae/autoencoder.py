"""Any autoencoder of diffusers behind two calls: pixels to moments, and latents to pixels.

Shape suffixes: B clips, N pictures, C channels, T frames, t latent frames, H and W pixels, h and w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from einops import rearrange
from torch import Tensor, nn

from stvae import conventions, weights
from stvae.card import Card, UnknownVAE
from stvae.checkpoints.bounded_build import build_bounded
from stvae.classes.convention import Config
from stvae.classes.decoding import DECODERS
from stvae.classes.hunyuan_mask import replace_slow_masks

PICTURES_PER_CALL = 8
"""Number of frames that an image VAE takes at once; bounds memory."""


def build_untrained(config: dict[str, Any]) -> Any:
    """Build the model of a diffusers configuration. Raises UnknownVAE if this diffusers does not have its class."""
    return find_class(config).from_config(config)


def find_class(config: dict[str, Any]) -> Any:
    """Return the class of a diffusers configuration. Raises UnknownVAE if this diffusers does not have it."""
    model_class = getattr(diffusers, config["_class_name"], None)
    if not isinstance(model_class, type) or not issubclass(model_class, diffusers.ModelMixin):
        raise UnknownVAE(
            f"diffusers {diffusers.__version__} has no model {config['_class_name']}; install one that does"
        )
    return model_class


def load_autoencoder(checkpoint: Path, card: Card, unused: tuple[str, ...]) -> Autoencoder:
    """Load the model of a checkpoint without the submodules in ``unused``.

    Raises WeightsError as ``weights.load_weights`` does.
    """
    config = weights.read_config(checkpoint)
    find_class(config)
    num_tensors, name = len(weights.read_headers(checkpoint)), weights.config_name(checkpoint)
    with torch.device("meta"):
        model = build_bounded(lambda: build_untrained(config), num_tensors, name)
    dropped = tuple(name for name in unused if getattr(model, name, None) is not None)
    weights.load_weights(model, checkpoint, dropped)
    for name in dropped:
        setattr(model, name, nn.Identity())  # some classes access both halves in every call
    _fill_meta_buffers(model, config)
    return Autoencoder(model, card, conventions.with_defaults(config))


def mean_and_logvar(encoded: Any) -> tuple[Tensor, Tensor | None]:
    """Return mean and log-variance of what a class's ``encode`` returned; the latter is None without a posterior."""
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None and hasattr(distribution, "logvar"):
        return distribution.mean, distribution.logvar
    if distribution is not None:
        return distribution.mode(), None
    latents: Tensor = encoded[0]  # a tuple (VidTok when quantised), or an output with one field
    return latents, None


def clear_cached_frames(model: nn.Module) -> None:
    """Drop the frames that a model (Wan) or its convolutions (EasyAnimate) keep when a call fails before its end."""
    clear_cache: Any = getattr(model, "clear_cache", None)
    if clear_cache is not None:
        clear_cache()
    for module in model.modules():
        if getattr(module, "prev_features", None) is not None:
            module.prev_features = None  # type: ignore[assignment]


class Autoencoder(nn.Module):
    """Pixels in the range of the class to moments (or means) and back, the same way for every class."""

    def __init__(self, model: Any, card: Card, config: Config) -> None:
        super().__init__()
        self.model = model
        self.takes_images = card.geometry.chunk_frames == 1
        self.convention = conventions.TABLE.get(card.class_name, conventions.UNLISTED)
        self.first_frame_copies = self.convention.first_frame_copies(config)
        self.adds_alpha = self.convention.adds_alpha(config)
        self.takes_noise_level = bool(config.get("timestep_conditioning"))
        self.decode_clip = DECODERS.get(card.class_name)
        if self.convention.tiling == "always":
            model.enable_tiling()
        if card.class_name == "AutoencoderKLHunyuanVideo15":
            replace_slow_masks(model)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the model to the precision of its computations, without the parts that always compute in float32."""
        names = set(self.convention.float32_modules)
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        kept = [(tensor, tensor.data.float()) for name, tensor in tensors if names & set(name.split("."))]
        self.to(dtype=dtype)
        for tensor, values in kept:
            tensor.data = values

    def encode(self, x_BCTHW: Tensor, noise_BCThw: Tensor | None = None) -> Tensor:
        """Return mean then log-variance (B, 2C, t, h, w), or the mean alone. ``noise_BCThw`` must be None."""
        # Shapes:    image VAEs: (B, 3, T, H, W) -> (B * T, 3, H, W) -> (B * T, 2C, h, w) -> (B, 2C, T, h, w).
        #            video VAEs: (B, 3, T, H, W) -> (B, 3, copies + T, H, W) -> (B, 2C, t, h, w).
        # Invariant: a clip's moments do not depend on the other clips of the batch.
        # Example:   a causal VidTok with stride 4 gets 3 copies of the first frame: 17 frames become 20, then t = 5.
        assert noise_BCThw is None
        if self.adds_alpha:
            x_BCTHW = torch.cat([x_BCTHW, torch.ones_like(x_BCTHW[:, :1])], dim=1)  # opaque
        if self.takes_images:
            frames_NCHW = rearrange(x_BCTHW, "b c t h w -> (b t) c h w")
            moments = [self._picture_moments(call) for call in frames_NCHW.split(PICTURES_PER_CALL)]
            return _to_clips(torch.cat(moments), len(x_BCTHW))
        if self.first_frame_copies:
            copies_BCTHW = x_BCTHW[:, :, :1].expand(-1, -1, self.first_frame_copies, -1, -1)
            x_BCTHW = torch.cat([copies_BCTHW, x_BCTHW], dim=2)
        return torch.cat([self._moments(call) for call in self._split_clips(x_BCTHW)])

    def decode(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        """Return pixels (B, 3, num_frames, H, W), in about the range of the class, of raw latents."""
        decode = self._decode_images if self.takes_images else self._decode_clips
        return decode(z_BCthw, num_frames)[:, :3]  # a fourth channel is the opacity

    @property
    def can_tile(self) -> bool:
        """True if the class can encode both in tiles and without."""
        return hasattr(self.model, "use_tiling") and self.convention.tiling == "optional"

    @contextmanager
    def tiled(self) -> Iterator[None]:
        """Encode in tiles inside the block. It needs less memory, but blends the seams, so values are not exact."""
        self.model.enable_tiling()
        try:
            yield
        finally:
            self.model.disable_tiling()

    def _decode_images(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        latents_NChw = _unfold_patches(rearrange(z_BCthw, "b c t h w -> (b t) c h w"), self.convention.patch)
        if self.convention.decodes_whole_clips:
            pixels_NCHW = _tensor_of(self.model.decode(latents_NChw, num_frames=num_frames))
        else:
            calls = latents_NChw.split(PICTURES_PER_CALL)
            pixels_NCHW = torch.cat([self._decode_pictures(call) for call in calls])
        return _to_clips(pixels_NCHW, len(z_BCthw))

    def _decode_pictures(self, z_NChw: Tensor) -> Tensor:
        if self.convention.pictures_have_time:
            return _tensor_of(self.model.decode(z_NChw[:, :, None]))[:, :, 0]
        return _tensor_of(self.model.decode(z_NChw))

    def _decode_clips(self, z_BCthw: Tensor, num_frames: int) -> Tensor:
        if self.decode_clip is not None:
            return self.decode_clip(self.model, z_BCthw)
        arguments = {}
        if self.takes_noise_level:  # LTX: the noise level of the latents
            arguments["temb"] = torch.zeros(len(z_BCthw), device=z_BCthw.device, dtype=z_BCthw.dtype)
        pixels = torch.cat([_tensor_of(self.model.decode(call, **arguments)) for call in self._split_clips(z_BCthw)])
        pixels_BCTHW = rearrange(pixels, "b t c h w -> b c t h w") if self.convention.decodes_frames_first else pixels
        return pixels_BCTHW[:, :, -num_frames:]  # the copies of the first frame come first

    def _split_clips(self, x_B: Tensor) -> tuple[Tensor, ...]:
        """Split the batch into the calls that the class can take."""
        return x_B.split(1) if self.convention.one_clip_per_call else (x_B,)

    def _picture_moments(self, x_NCHW: Tensor) -> Tensor:
        if self.convention.pictures_have_time:
            return self._moments(x_NCHW[:, :, None])[:, :, 0]
        return self._moments(x_NCHW)

    def _moments(self, x: Tensor) -> Tensor:
        clear_cached_frames(self.model)
        try:
            mean, logvar = mean_and_logvar(self.model.encode(x))
        except BaseException:
            clear_cached_frames(self.model)
            raise
        logvar = None if self.convention.lacks_logvar else logvar
        parts = [_fold_patches(part, self.convention.patch) for part in (mean, logvar) if part is not None]
        return torch.cat(parts, dim=1)


def _fill_meta_buffers(model: nn.Module, config: dict[str, Any]) -> None:
    """Give constants that no checkpoint holds the values that the class computes for them."""
    if not any(buffer.is_meta for buffer in model.buffers()):
        return
    computed = dict(build_untrained(config).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, computed[name])


def _to_clips(pictures_NChw: Tensor, batch: int) -> Tensor:
    return rearrange(pictures_NChw, "(b t) c h w -> b c t h w", b=batch)


def _tensor_of(decoded: Any) -> Tensor:
    """Return the tensor in what a class's ``decode`` returned."""
    pixels: Tensor = decoded if isinstance(decoded, Tensor) else decoded[0]
    return pixels


def _fold_patches(z_NChw: Tensor, patch: int) -> Tensor:
    """Merge ``patch`` by ``patch`` cells into one, with channels in the order (c, row, column)."""
    return z_NChw if patch == 1 else nn.functional.pixel_unshuffle(z_NChw, patch)


def _unfold_patches(z_NChw: Tensor, patch: int) -> Tensor:
    """Do the reverse of ``_fold_patches``."""
    return z_NChw if patch == 1 else nn.functional.pixel_shuffle(z_NChw, patch)

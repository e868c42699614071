"""The type of a batch, and how its tensors are made: posterior samples, padding, packing.

B batch · C latent channels · t, h, w latent grid · L tokens
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.loader.samples import Samples

LOGVAR_RANGE = (-30.0, 20.0)
"""To which diffusers clamps log-variances before sampling (models/autoencoders/vae.py)."""


class Batch(TypedDict, total=False):
    """One rank's batch. Tensors are on the device that was asked for."""

    latents: Tensor
    """[B,C,t,h,w], float32 unless another dtype was asked for; with ``shapes="pack"`` [L, C x patch]."""
    normalized: bool
    """Whether ``latents`` are ``(raw - shift) * scale``."""
    fps: Tensor
    """float32 [B], NaN for images."""
    height: Tensor
    """int64 [B], pixels; so is ``width``."""
    width: Tensor
    num_frames: Tensor
    """int64 [B], pixel frames."""
    caption: list[str | None]
    id: list[str]
    key: list[str]
    start_frame: Tensor
    """int64 [B], first frame of the window in its clip; where clips are cut into windows."""
    first_latents: Tensor
    """[B,C,1,h,w], that frame encoded alone; so is ``last_latents``. With ``conditioning``."""
    last_latents: Tensor
    valid: Tensor
    """bool [B], False for blanks. With ``tail="pad"``."""
    mask: Tensor
    """bool [B,t,h,w], False where padded. With ``shapes="pad"``."""
    lengths: Tensor
    """int32 [B], tokens of each sample. With ``shapes="pack"``."""
    cu_lengths: Tensor
    """int32 [B + 1], where each sample's tokens begin, as varlen attention takes it. With ``shapes="pack"``."""
    latent_sizes: Tensor
    """int64 [B,3], (t, h, w) in latent cells. With ``shapes="pack"``."""


def sample_posterior(moments_BCthw: Tensor, seeds: list[int]) -> Tensor:
    """A draw from each posterior, float32, by noise that depends on its seed (and on the kind of device) only."""
    mean, logvar = moments_BCthw.float().chunk(2, dim=1)
    generator = torch.Generator(mean.device)
    noise = [torch.randn(mean.shape[1:], generator=generator.manual_seed(seed), device=mean.device) for seed in seeds]
    return mean + torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE)) * torch.stack(noise)


def padded(each_Cthw: list[Tensor], size_thw: tuple[int, ...], blank: list[bool]) -> tuple[Tensor, Tensor]:
    """Samples in the corner of one size, zeros round them, and the mask of what is sample."""
    first = each_Cthw[0]
    x_BCthw = first.new_zeros((len(each_Cthw), len(first), *size_thw))
    mask_Bthw = torch.zeros((len(each_Cthw), *size_thw), dtype=torch.bool, device=first.device)
    for i, x_Cthw in enumerate(each_Cthw):
        if not blank[i]:
            place = tuple(slice(n) for n in x_Cthw.shape[1:])
            x_BCthw[i][:, *place] = x_Cthw
            mask_Bthw[i][place] = True
    return x_BCthw, mask_Bthw


def packed(each_Cthw: list[Tensor], patch: tuple[int, int, int]) -> dict[str, Tensor]:
    """Patches as tokens, in (t, h, w) order, each channel by channel as a strided convolution reads it."""
    tokens = []
    for x_Cthw in each_Cthw:
        c, *size = x_Cthw.shape
        (t, h, w), (pt, ph, pw) = (n // p for n, p in zip(size, patch, strict=True)), patch
        x = x_Cthw.reshape(c, t, pt, h, ph, w, pw).permute(1, 3, 5, 0, 2, 4, 6)
        tokens.append(x.reshape(t * h * w, c * pt * ph * pw))
    device = each_Cthw[0].device
    lengths = torch.tensor([len(x) for x in tokens], dtype=torch.int32)
    cu_lengths = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    sizes = torch.tensor([x.shape[1:] for x in each_Cthw])
    return {
        "latents": torch.cat(tokens),
        "lengths": lengths.to(device),
        "cu_lengths": cu_lengths.to(device),
        "latent_sizes": sizes.to(device),
    }


def check_patch(samples: Samples, patch: tuple[int, int, int]) -> None:
    """ConfigError unless every latent is made of whole patches."""
    for bucket in samples.buckets:
        if any(n % p for n, p in zip(bucket.latent_thw, patch, strict=True)):
            raise ConfigError(
                f"latents of {bucket} are {bucket.latent_thw}, which is not a multiple of patch {patch} on every axis"
            )

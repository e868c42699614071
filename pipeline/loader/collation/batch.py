"""The type of a batch, and the functions that make its tensors: posterior samples, padding, packing.

B batch · C latent channels · t, h, w latent grid · L tokens
"""

from __future__ import annotations

from typing import TypedDict

import torch
from einops import rearrange
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.loader.samples import Samples

LOGVAR_RANGE = (-30.0, 20.0)
"""Range of log-variances before sampling. Source: diffusers, models/autoencoders/vae.py."""


SIZES = ("height", "width", "num_frames")
"""Sizes of a sample that every batch has."""
METADATA = ("fps", *SIZES, "id", "key")
"""Columns that every batch has."""


class Batch(TypedDict, total=False):
    """The batch of one rank. Tensors are on the device that the options name."""

    latents: Tensor
    """[B,C,t,h,w], float32 unless the options name another dtype. With ``shapes="pack"``: [L, C x patch]."""
    dataset: str
    """Name of the set that the samples are from. Present if several sets are mixed."""
    normalized: bool
    """True if ``latents`` are ``(raw - shift) * scale``."""
    fps: Tensor
    """float32 [B], NaN for images."""
    height: Tensor
    """int64 [B], in pixels."""
    width: Tensor
    """int64 [B], in pixels."""
    num_frames: Tensor
    """int64 [B], frames in pixel space."""
    caption: list[str | None]
    id: list[str]
    key: list[str]
    start_frame: Tensor
    """int64 [B], first frame of the window in its clip. Present if clips are cut into windows."""
    replaced: list[str | None]
    """Id of the damaged sample whose place a sample has, None for others. Present with ``on_damage="replace"``."""
    first_latents: Tensor
    """[B,C,1,h,w], the first frame encoded alone. Present with ``conditioning``."""
    last_latents: Tensor
    """[B,C,1,h,w], the last frame encoded alone. Present with ``conditioning``, if the output has it."""
    text_embeddings: Tensor
    """[B,L,D], rows of the main text encoder in the layer's type, padded with zeros to the longest text of the batch or to
    the family's fixed length, on the family's side; [sum of L,D] with ``shapes="pack"``. Present with a text layer, as are
    the following ones. Further encoders have ``text_<array>_embeddings`` and ``text_<array>_mask``."""
    text_mask: Tensor
    """bool [B,L], True for tokens."""
    text_lengths: Tensor
    """int32 [B], rows of each text. With ``shapes="pack"``, in place of the mask."""
    text_pooled: Tensor
    """[B,D], the vector of a family that has one."""
    text_dropped: Tensor
    """bool [B], True where the caption is dropped (``text_dropout``). If the transformer's checkpoint has the null, the
    embedding is zero and the mask is that of the caption."""
    valid: Tensor
    """bool [B], False for blanks. Present with ``tail="pad"``."""
    mask: Tensor
    """bool [B,t,h,w], False in the padding. Present with ``shapes="pad"``."""
    lengths: Tensor
    """int32 [B], number of tokens of each sample. Present with ``shapes="pack"``."""
    cu_lengths: Tensor
    """int32 [B + 1], where each sample's tokens begin, as variable-length attention takes it. With ``shapes="pack"``."""
    latent_sizes: Tensor
    """int64 [B,3], (t, h, w) in latent cells. Present with ``shapes="pack"``."""


def sample_posterior(moments_BCthw: Tensor, seeds: list[int]) -> Tensor:
    """Return one sample of each posterior, float32.

    The noise of a sample depends on its seed only, and on the type of device, because torch's generators differ by it.
    """
    mean, logvar = moments_BCthw.float().chunk(2, dim=1)
    generator = torch.Generator(mean.device)
    noise = [torch.randn(mean.shape[1:], generator=generator.manual_seed(seed), device=mean.device) for seed in seeds]
    return mean + torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE)) * torch.stack(noise)


def pad_latents(each_Cthw: list[Tensor], size_thw: tuple[int, ...], blank: list[bool]) -> tuple[Tensor, Tensor]:
    """Pad latents of several sizes with zeros to one size. Returns [B,C,t,h,w] and a mask [B,t,h,w]."""
    # Shapes: each_Cthw[i] is [C,t_i,h_i,w_i], none larger than size_thw on any axis.
    # Invariant: x[i, :, :t_i, :h_i, :w_i] is sample i, and mask[i] is True exactly there; blanks are zero and False.
    # Example: sizes (1,1,1) and (1,2,2), padded to (1,2,2) -> masks [[[1 0] [0 0]]] and [[[1 1] [1 1]]].
    first = each_Cthw[0]
    x_BCthw = first.new_zeros((len(each_Cthw), len(first), *size_thw))
    mask_Bthw = torch.zeros((len(each_Cthw), *size_thw), dtype=torch.bool, device=first.device)
    for i, x_Cthw in enumerate(each_Cthw):
        if not blank[i]:
            corner = tuple(slice(n) for n in x_Cthw.shape[1:])
            all_channels = (slice(None), *corner)
            x_BCthw[i][all_channels] = x_Cthw
            mask_Bthw[i][corner] = True
    return x_BCthw, mask_Bthw


def pack_tokens(each_Cthw: list[Tensor], patch: tuple[int, int, int]) -> dict[str, Tensor]:
    """Cut latents into patches and join those of all samples into one row of tokens, [L, C x patch]."""
    # Shapes: each_Cthw[i] is [C,t,h,w], a multiple of the patch on each axis; it becomes (t h w) / patch tokens.
    # Invariant: tokens are in (t, h, w) order, their values channel by channel, as a strided convolution reads them.
    # Example: two samples of 4 and 6 tokens -> latents [10, C x patch], lengths [4 6], cu_lengths [0 4 10].
    pt, ph, pw = patch
    pattern = "c (t pt) (h ph) (w pw) -> (t h w) (c pt ph pw)"
    tokens = [rearrange(x_Cthw, pattern, pt=pt, ph=ph, pw=pw) for x_Cthw in each_Cthw]
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
    """Raise ConfigError unless the latents of every bucket consist of whole patches."""
    for bucket in samples.buckets:
        if any(n % p for n, p in zip(bucket.latent_thw, patch, strict=True)):
            raise ConfigError(
                f"latents of {bucket} are {bucket.latent_thw}, which is not a multiple of patch {patch} on every axis"
            )

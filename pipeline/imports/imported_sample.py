"""One sample as another trainer's files hold it, and what is done with their values, which may be anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.errors import Rejected
from pipeline.storage.urls import canonical

Form = Literal["raw", "normalized"]
"""Raw latents are those of the VAE. Normalized ones are ``(raw - shift) * scale``, as the transformer takes them."""


@dataclass(kw_only=True, slots=True)
class ImportedSample:
    """Values of a source's sample. None stands for what the source does not say."""

    latent: torch.Tensor
    """The latent in the form of its source: ``[C,t,h,w]``, also ``[1,C,t,h,w]``, or ``[C,h,w]`` for an image."""
    form: Form | None = None
    """Form of the latent, if the sample says it."""
    is_sample: bool | None = None
    """True if the latent is a sample of the posterior, False if it is its mean."""
    key: str | None = None
    uri: str | None = None
    """The video that the latent was made from."""
    caption: str | None = None
    fps: float | None = None
    num_frames: int | None = None
    """Number of frames in pixels. It is only taken if the VAE maps it to the latent's size."""
    size_hw: tuple[int | None, int | None] = (None, None)
    """Height and width in pixels as the source says them."""
    sizes_must_fit: bool = False
    """True if a size in pixels that does not fit the latent shows that another VAE made it."""
    src_size_hw: tuple[int | None, int | None] = (None, None)
    """Height and width of the video that the clip was cut from."""
    id: str | None = None
    """The source's own name of the sample."""


def text_of(value: Any) -> str | None:
    """Return a text, with a replacement for what is not Unicode; None for an empty one and for any other value."""
    if not isinstance(value, str) or not value:
        return None
    return value.encode("utf-8", "replace").decode()


def uri_of(value: Any) -> str | None:
    """Return the path or URL of a video, without credentials; None if there is none."""
    text = text_of(value)
    if text is None or "://" not in text:
        return text
    try:
        return canonical(text)
    except ValueError:  # not a URL
        return None


def number_of(value: Any) -> float | None:
    """Return a positive finite number, which may be in a tensor; None for any other value."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def size_of(value: Any) -> int | None:
    """Return a positive whole number that an image size may be; None for any other value."""
    number = number_of(value)
    return int(number) if number is not None and number == int(number) and number < 1 << 31 else None


def width_and_height(value: Any) -> tuple[int | None, int | None]:
    """Return height and width of a pair ``[width, height]``; None for each if it is anything else."""
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist() if value.numel() == 2 else None
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None, None
    return size_of(value[1]), size_of(value[0])


def require_latent(value: Any, name: str) -> torch.Tensor:
    """Return the tensor. Rejected if it is none of floating-point numbers."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        found = f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise Rejected("import", "no_latent", f"'{name}' is {found}; expected a tensor of floating-point numbers")
    return value.detach()

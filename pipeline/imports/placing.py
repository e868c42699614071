"""Fits an imported latent to the VAE that it is declared to be of: sizes in pixels, and raw values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.bucket import Bucket
from pipeline.errors import Rejected
from pipeline.imports.imported_sample import ImportedSample
from stvae.card import Card
from stvae.geometry import Geometry, SizeRule

Floats = npt.NDArray[np.float32]
MAX_LATENT_SIZE = 1 << 16
"""Largest size of a latent in cells. Published models have some hundreds."""


def raw_latent(sample: ImportedSample, card: Card, normalized: bool) -> Floats:
    """Return the raw latent ``[C,t,h,w]``, float32. Rejected if it does not have the channels of the VAE, or NaN.

    ``normalized``: the source's latents are, unless the sample says something else.
    """
    latent_Cthw = _with_axes(sample.latent).to(torch.float32)
    channels = latent_Cthw.shape[0]
    if channels != card.latent_channels:
        raise Rejected(
            "import",
            "wrong_channels",
            f"its latent has {channels} channels, and those of {card.class_name} have {card.latent_channels}",
        )
    if not all(1 <= size <= MAX_LATENT_SIZE for size in latent_Cthw.shape):
        raise Rejected("import", "wrong_size", f"its latent has the sizes {list(latent_Cthw.shape)}")
    if not torch.isfinite(latent_Cthw).all():
        raise Rejected("import", "nonfinite", "its latent has NaN or infinite values")
    if not normalized if sample.form is None else sample.form == "raw":
        return latent_Cthw.contiguous().numpy()
    shift, scale = (_per_cell(values, latent_Cthw.shape[1]) for values in card.statistics(latent_Cthw.shape[1]))
    with np.errstate(over="ignore"):
        raw: Floats = (latent_Cthw.to(torch.float64).numpy() / scale + shift).astype(np.float32)
    if not np.isfinite(raw).all():
        raise Rejected("import", "nonfinite", "its latent has values that float32 cannot hold")
    return raw


def bucket_of(sample: ImportedSample, latent_thw: tuple[int, int, int], card: Card) -> Bucket:
    """Return the size of the clip in pixels. Rejected if the VAE gives latents of this size for none."""
    geometry = card.geometry
    latent_t, latent_h, latent_w = latent_thw
    num_frames = _frames(geometry, latent_t, sample.num_frames)
    height = _length(geometry.height, geometry.spatial_stride, latent_h, sample.size_hw[0])
    width = _length(geometry.width, geometry.spatial_stride, latent_w, sample.size_hw[1])
    if num_frames is None or height is None or width is None:
        raise Rejected(
            "import", "wrong_size", f"its latent has the sizes {list(latent_thw)}, which {card.class_name} never gives"
        )
    if sample.sizes_must_fit and any(
        said not in (None, size) for said, size in zip(sample.size_hw, (height, width), strict=True)
    ):
        raise Rejected(
            "import",
            "wrong_size",
            f"it says that its clip is {sample.size_hw[0]}x{sample.size_hw[1]}, but {card.class_name} gives latents of its "
            f"size for {height}x{width}",
        )
    return Bucket(num_frames, height, width)


def _with_axes(latent: torch.Tensor) -> torch.Tensor:
    """Return a latent with four axes."""
    if latent.ndim == 5 and latent.shape[0] == 1:
        latent = latent[0]
    elif latent.ndim == 3:  # an image
        latent = latent[:, None]
    if latent.ndim != 4:
        raise Rejected("import", "wrong_size", f"its latent has the shape {list(latent.shape)}; expected [C,t,h,w]")
    return latent


def _per_cell(values: Any, latent_t: int) -> npt.NDArray[np.float64]:
    """Return shift or scale as ``[C,1,1,1]``, or ``[C,t,1,1]`` for a VAE with one value per latent frame."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and array.shape[1] != latent_t:
        raise Rejected(
            "import", "wrong_size", f"its latent has {latent_t} frames, more than the VAE has statistics for"
        )
    return array.reshape(len(values), -1, 1, 1)


def _length(rule: SizeRule, stride: int, latent_size: int, said: int | None) -> int | None:
    """Return the height or width of a clip: the one that is said if it fits, else the one that the stride gives."""
    for size in (said, latent_size * stride):
        if size is not None and size // stride == latent_size and rule.fits(size):
            return size
    return None


def _frames(geometry: Geometry, latent_t: int, said: int | None) -> int | None:
    """Return the number of frames of a clip: the one that is said if it fits, else the largest that gives the latent.

    A latent of one frame is that of an image if the VAE takes images. Finds the largest number by bisection: more frames
    never give fewer latent frames.
    """
    for num_frames in (said, 1):
        if num_frames is not None and _gives(geometry, num_frames, latent_t):
            return num_frames
    low, high = 0, latent_t * geometry.temporal_stride + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if geometry.latent_frames(middle) <= latent_t else (low, middle)
    largest = geometry.frames.largest_up_to(low)
    return largest if _gives(geometry, largest, latent_t) else None


def _gives(geometry: Geometry, num_frames: int, latent_t: int) -> bool:
    # a clip has at least a latent frame per stride, which bounds the work for a number that a file says
    fits = num_frames <= latent_t * geometry.temporal_stride and geometry.frames.fits(num_frames)
    return fits and geometry.latent_frames(num_frames) == latent_t

"""The bucket of a video, and how its frames become frames of the bucket: scaled to cover it, then cropped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe
from stvae.geometry import Geometry


class CropPosition(NamedTuple):
    """Place of the crop in the pixels that are cropped away, as a share from 0 to 1 on each axis; None is the center."""

    down: float | None = None
    right: float | None = None


CENTER = CropPosition()


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Scale and crop that turn a displayed frame into a bucket's frame, in pixels. It is scaled first."""

    scaled_height: int
    scaled_width: int
    crop_top: int
    crop_left: int
    height: int
    width: int


def choose_bucket(
    width: int, height: int, num_frames: int, buckets: Sequence[Bucket], recipe: Recipe, geometry: Geometry
) -> Bucket | str:
    """The bucket with the nearest aspect ratio, then the most frames, among those that the video can fill.

    ``num_frames``: length of the video at the clips' rate. Returns the reason of a skip if the video fills no bucket.
    """
    large = [b for b in buckets if max(b.height / height, b.width / width) <= recipe.max_upscale + 1e-9]
    if not large:
        return "too_small"
    enough = [b for b in large if b.num_frames <= num_frames]
    if not enough and recipe.remainder == "shorten" and geometry.largest_whole_length(num_frames):
        fewest = min(b.num_frames for b in large)
        enough = [b for b in large if b.num_frames == fewest]
    if not enough:
        return "too_short"
    aspect = width / height
    return min(
        enough,
        key=lambda b: (round(abs(math.log(aspect * b.height / b.width)), 6), -b.num_frames, -b.height * b.width),
    )


def crop_position(recipe: Recipe, source: str, ordinal: int, key: str) -> CropPosition:
    """The place of the crop for an item, which its source, its ordinal and its key identify.

    A random place is two numbers of 32 bits from a hash of the recipe's seed and the item, so it never depends on the run.
    """
    if recipe.crop == "center":
        return CENTER
    if recipe.crop == "top":
        return CropPosition(down=0.0)
    text = f"{recipe.crop_seed}\0{source}\0{ordinal}\0{key}"
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    down, right = (int.from_bytes(part, "big") / 2**32 for part in (digest[:4], digest[4:8]))
    return CropPosition(down, right)


def fit_to_bucket(width: int, height: int, bucket: Bucket, position: CropPosition = CENTER) -> Placement:
    """The placement that scales a frame to cover the bucket and crops the longer side at ``position``.

    Source: rounding as in Open-Sora 1.2 (opensora/datasets/utils.py).
    """
    scale_h, scale_w = bucket.height / height, bucket.width / width
    if scale_h > scale_w:
        scaled_height, scaled_width = bucket.height, max(bucket.width, round(width * scale_h))
    else:
        scaled_height, scaled_width = max(bucket.height, round(height * scale_w)), bucket.width
    return Placement(
        scaled_height=scaled_height,
        scaled_width=scaled_width,
        crop_top=_offset(scaled_height - bucket.height, position.down),
        crop_left=_offset(scaled_width - bucket.width, position.right),
        height=bucket.height,
        width=bucket.width,
    )


def _offset(surplus: int, share: float | None) -> int:
    """Pixels to crop before the kept part; every offset from 0 to ``surplus`` has an equal part of the shares."""
    return surplus // 2 if share is None else int(share * (surplus + 1))

"""How a displayed frame becomes a frame of a bucket."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.recipe import Bucket


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """How a displayed frame becomes a bucket's frame: scaled to cover it, then cropped at the center. In pixels."""

    scaled_height: int
    scaled_width: int
    crop_top: int
    crop_left: int
    height: int
    width: int


def fit_to_bucket(width: int, height: int, bucket: Bucket) -> Placement:
    """The placement that scales a frame to cover the bucket and crops the longer side evenly.

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
        crop_top=(scaled_height - bucket.height) // 2,
        crop_left=(scaled_width - bucket.width) // 2,
        height=bucket.height,
        width=bucket.width,
    )

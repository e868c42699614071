"""Facts of videos, and decoded clips, without a video. Needs no decoder."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipeline.bucket import Bucket
from pipeline.video.outcomes import Clip, Frames
from pipeline.video.windows import Placement, VideoFacts, Window


def plain_facts(num_frames: int, height: int, width: int) -> VideoFacts:
    """The facts that probing gives for an upright video with 24 frames per second."""
    return VideoFacts(
        container="none",
        codec="none",
        coded_width=width,
        coded_height=height,
        rotation=0,
        sample_aspect=Fraction(1),
        time_base=Fraction(1, 24),
        pts=tuple(range(num_frames)),
        end_pts=num_frames,
        is_image=num_frames == 1,
        hdr=None,
        decord_refusal=None,
    )


def clip_of(bucket: Bucket, frames_THWC: Frames | None = None) -> Clip:
    """Return a clip with the facts of a bucket, and with its frames if they are given."""
    place = Placement(
        scaled_height=bucket.height,
        scaled_width=bucket.width,
        crop_top=0,
        crop_left=0,
        height=bucket.height,
        width=bucket.width,
    )
    window = Window(
        index=0,
        bucket=bucket,
        filled=bucket,
        pts=tuple(range(bucket.num_frames)),
        start_s=0.0,
        end_s=bucket.num_frames / 23.976,
        fps=23.976 if bucket.num_frames > 1 else None,
        frame_stride=1,
        placement=place,
    )
    frames = np.zeros((1, 1, 1, 3), dtype=np.uint8) if frames_THWC is None else frames_THWC
    return Clip(window=window, frames_THWC=frames, decoder="none")

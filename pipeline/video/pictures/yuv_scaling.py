"""Scales frames in YUV, as they are stored, before they become RGB (``resize: ffmpeg``). Runs in decoding children only.

FFmpeg's scaler averages the area under each pixel where the picture shrinks, and interpolates with a bicubic where it grows.
A scaled picture has one sample of color for two pixels of a row. With one for every pixel, the conversion to RGB alone would
take longer than all of this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.video.pictures.orientation import upright
from pipeline.video.placement import Placement
from pipeline.video.windows import VideoFacts

SCALED_FORMAT = "yuv422p"
"""FFmpeg's name of YUV with 8 bits a sample and one sample of color for two pixels of a row."""


class YuvScaler:
    """Scales the frames of one video. It keeps FFmpeg's contexts, which take long to set up, for each size."""

    def __init__(self, facts: VideoFacts) -> None:
        self.facts = facts
        self._contexts: dict[tuple[int, int], tuple[VideoReformatter, VideoReformatter]] = {}

    def takes(self, frame: Any) -> bool:
        """Return True for a PyAV frame in YUV without a crop. Others are resized as RGB."""
        if isinstance(frame, np.ndarray) or any(self.facts.crop):
            return False
        return len(frame.format.components) == 3 and not frame.format.is_rgb and not frame.format.has_palette

    def scaled(self, frame: Any, placement: Placement) -> npt.NDArray[np.uint8]:
        """An upright frame, uint8 RGB ``[H,W,3]``, of the placement's size before its crop."""
        height, width = placement.scaled_height, placement.scaled_width
        if self.facts.rotation % 180:
            height, width = width, height
        scaler, converter = self._contexts.setdefault((height, width), (VideoReformatter(), VideoReformatter()))
        shrinks = height <= frame.height and width <= frame.width
        small = frame
        if (height, width) != (frame.height, frame.width):
            kernel = Interpolation.AREA if shrinks else Interpolation.BICUBIC
            small = scaler.reformat(
                frame, width=width, height=height, format=SCALED_FORMAT, interpolation=kernel, threads=1
            )
        picture_HWC: Any = converter.reformat(small, format="rgb24", threads=1).to_ndarray()
        return upright(picture_HWC, self.facts)


class StoredFrame:
    """A frame as it is stored, with the scaler that makes a picture of it."""

    def __init__(self, frame: Any, scaler: YuvScaler) -> None:
        self._frame = frame
        self._scaler = scaler

    def resized(self, placement: Placement) -> npt.NDArray[np.uint8]:
        """The frame of a bucket, uint8 RGB ``[H,W,3]``. It may be a view."""
        top, left = placement.crop_top, placement.crop_left
        scaled_HWC = self._scaler.scaled(self._frame, placement)
        return scaled_HWC[top : top + placement.height, left : left + placement.width]

"""Reads the frames of any video or picture as upright RGB, deinterlaced and tone-mapped where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from pipeline.video import pyav_reader, seeking
from pipeline.video.pictures import heif_grid, webp_animation
from pipeline.video.pictures.deinterlace import deinterlaced
from pipeline.video.pictures.orientation import upright
from pipeline.video.pictures.tone_map import tone_mapped
from pipeline.video.pictures.yuv_scaling import StoredFrame, YuvScaler
from pipeline.video.pyav_reader import FirstPass
from pipeline.video.windows import VideoFacts

SDR_FORMAT, HDR_FORMAT = "rgb24", "rgb48le"
"""FFmpeg's names of the RGB that frames become: 8 bits a sample, or 16 before they are tone-mapped."""


def upright_frames(
    file: BinaryIO,
    facts: VideoFacts,
    wanted: Sequence[int],
    *,
    deinterlace: bool,
    tone_map: bool,
    first_pass: FirstPass | None = None,
    as_stored: bool = False,
) -> Iterator[tuple[int, npt.NDArray[np.uint8] | StoredFrame | None]]:
    """Yield (pts, uint8 RGB ``[H,W,3]``) of the ``wanted`` frames, and (pts, None) of others that were decoded on the way.

    ``wanted`` ascends. A missing frame is never replaced by another one. ``first_pass``: the pass that probing began.
    ``as_stored``: yield frames in YUV as ``StoredFrame``, which is scaled before it becomes RGB, if none is tone-mapped.
    """
    pixel_format = HDR_FORMAT if tone_map else SDR_FORMAT
    needed = set(wanted)
    reformatter = VideoReformatter()  # one for all frames, since it takes long to set up
    scaler = YuvScaler(facts)
    for pts, frame in _stored_frames(file, facts, wanted, pixel_format, deinterlace, first_pass):
        if pts not in needed:
            yield pts, None
            continue
        if as_stored and not tone_map and scaler.takes(frame):
            yield pts, StoredFrame(frame, scaler)
            continue
        picture_HWC: Any = frame
        if not isinstance(frame, np.ndarray):
            picture_HWC = reformatter.reformat(frame, format=pixel_format, threads=1).to_ndarray()
        if tone_map and facts.hdr:
            picture_HWC = tone_mapped(picture_HWC, facts.hdr)
        yield pts, upright(picture_HWC, facts)


def _stored_frames(
    file: BinaryIO,
    facts: VideoFacts,
    wanted: Sequence[int],
    pixel_format: str,
    deinterlace: bool,
    first_pass: FirstPass | None,
) -> Iterator[tuple[int, Any]]:
    """Yield (pts, picture) of at least the wanted frames: a PyAV frame, or RGB ``[H,W,3]`` as stored."""
    if facts.container == webp_animation.CONTAINER:
        return webp_animation.frames(file, facts)
    if facts.container == heif_grid.CONTAINER:
        return heif_grid.frames(file, pixel_format)
    if deinterlace:  # which needs the frame before each frame, so it cannot begin at a key frame
        return deinterlaced(pyav_reader.frames(file, facts), facts.time_base)
    return seeking.frames(file, facts, wanted, first_pass)

"""How a frame must be turned and mirrored to be upright, and how its pixels become that. Runs in decoding children only.

Cameras write the orientation as EXIF (1 to 8), as ``irot`` and ``imir`` in HEIF, or as a matrix in MP4. FFmpeg attaches
all of them to frames as a display matrix.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import av.filter
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.windows import VideoFacts

UNNAMED_TYPES = range(28, 48)
"""Numbers of frame side data that FFmpeg may attach, for example EXIF, and that PyAV cannot name."""


def orientation_of(frame: Any) -> tuple[int, bool]:
    """(degrees, mirrored): mirror the frame left to right if ``mirrored``, then rotate it counter-clockwise.

    Raises Rejected for angles other than 0, 90, 180 and 270 degrees.
    """
    degrees, mirrored = int(frame.rotation), False
    matrix = _display_matrix(frame)
    if matrix is not None:
        a, b, c, d = matrix
        if a * d - b * c < 0:
            degrees, mirrored = round(-math.degrees(math.atan2(-b, -a))), True
    if degrees % 90:
        raise Rejected("probe", "rotated", f"the display matrix rotates the picture by {degrees} degrees")
    return degrees % 360, mirrored


def upright(picture_HWC: npt.NDArray[np.uint8], facts: VideoFacts) -> npt.NDArray[np.uint8]:
    """A coded picture, uint8 RGB ``[H,W,3]``, as it should be seen: cropped as the container says, mirrored, rotated."""
    top, bottom, left, right = facts.crop
    if any(facts.crop):
        picture_HWC = picture_HWC[top : facts.coded_height - bottom, left : facts.coded_width - right]
    if facts.mirrored:
        picture_HWC = picture_HWC[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture_HWC, facts.rotation // 90))


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """The four factors (a, b, c, d) of the frame's display matrix, x' = a*x + c*y and y' = b*x + d*y; None without one."""
    try:
        side_data = list(frame.side_data)
    except ValueError:  # PyAV gives up at the first datum that it cannot name
        side_data = list(_without_unnamed(frame).side_data)
    for datum in side_data:
        if datum.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack_from("<5i", bytes(datum))
            return a, b, c, d
    return None


def _without_unnamed(frame: Any) -> Any:
    """The same frame without the side data that PyAV cannot name."""
    graph = av.filter.Graph()
    last: Any = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    for number in UNNAMED_TYPES:
        deletion = graph.add("sidedata", f"mode=delete:type={number}")
        last.link_to(deletion)
        last = deletion
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()

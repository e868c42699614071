"""Probes an animated WebP and reads its frames with Pillow, since PyAV's FFmpeg only decodes still ones.

Runs in decoding children only. Source of the chunks: https://developers.google.com/speed/webp/docs/riff_container
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.windows import VideoFacts

CONTAINER = "webp_animation"
"""Name of these files in ``VideoFacts``."""
ANIMATION_FLAG = 0x02
"""Bit of the first byte of a VP8X chunk."""
SHORTEST_MS, DEFAULT_MS = 11, 100
"""A frame with a shorter duration is shown for the default one, as browsers do."""
ORIENTATION_TAG = 0x112
EXIF_ORIENTATIONS = {
    2: (0, True),
    3: (180, False),
    4: (180, True),
    5: (90, True),
    6: (270, False),
    7: (270, True),
    8: (90, False),
}
"""(degrees counter-clockwise, mirrored) by the number in EXIF."""


def is_animated(file: BinaryIO) -> bool:
    """Return True if the file is an animated WebP."""
    file.seek(0)
    start = file.read(21)
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) == 21 and bool(start[20] & ANIMATION_FLAG)


def probe(file: BinaryIO, max_pixels: int) -> VideoFacts:
    """Facts of an animation, in milliseconds. Raises Rejected if it is too large, or ends early."""
    width, height, durations_ms = _read_chunks(file)
    if width * height > max_pixels:
        raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
    if not durations_ms:
        raise Rejected("probe", "no_frames", "the animation has no frames")
    starts_ms = [0]
    for duration_ms in durations_ms:
        starts_ms.append(starts_ms[-1] + (duration_ms if duration_ms >= SHORTEST_MS else DEFAULT_MS))
    rotation, mirrored = EXIF_ORIENTATIONS.get(_open(file).getexif().get(ORIENTATION_TAG), (0, False))
    return VideoFacts(
        container=CONTAINER,
        codec="webp",
        coded_width=width,
        coded_height=height,
        rotation=rotation,
        mirrored=mirrored,
        sample_aspect=Fraction(1),
        time_base=Fraction(1, 1000),
        pts=tuple(starts_ms[:-1]),
        end_pts=starts_ms[-1],
        is_image=len(durations_ms) == 1,
        hdr=None,
        decord_refusal="an animated WebP",
    )


def frames(file: BinaryIO, facts: VideoFacts) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """(pts, uint8 RGB ``[H,W,3]``) of every frame in order, as stored. Raises Rejected at the first sign of damage."""
    image = _open(file)
    for index, pts in enumerate(facts.pts):
        try:
            image.seek(index)
            yield pts, np.asarray(image.convert("RGB"))
        except (OSError, EOFError) as error:
            raise Rejected("decode", "invalid_data", f"frame {index} of the animation cannot be decoded") from error


def _open(file: BinaryIO) -> Any:
    """The animation as a Pillow image."""
    from PIL import Image

    file.seek(0)
    try:
        return Image.open(file, formats=["WEBP"])
    except (OSError, SyntaxError) as error:
        raise Rejected("probe", "invalid_data", "the animation cannot be opened") from error


def _read_chunks(file: BinaryIO) -> tuple[int, int, list[int]]:
    """Width and height in pixels, and the duration of each frame in ms. Raises Rejected if the file ends early."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(4)
    end = 8 + int.from_bytes(file.read(4), "little")
    if end > size_bytes:
        raise Rejected("probe", "truncated", f"the header states {end} bytes, the file has {size_bytes}")
    file.seek(24)
    width, height = (1 + int.from_bytes(file.read(3), "little") for _ in range(2))
    durations_ms = []
    position = 12
    while position + 8 <= end:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if name == b"ANMF":
            durations_ms.append(int.from_bytes(file.read(16)[12:15], "little"))
        position += 8 + length + length % 2
    return width, height, durations_ms

"""The size that the header of a picture file declares, read before a library takes memory for it.

FFmpeg refuses the largest sizes itself, as data that is not valid and without a word about the size.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

PNG, GIF, JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"\xff\xd8"
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers whose segment has the size of the picture."""
MAX_SEGMENTS = 1000
"""Number of JPEG segments that are looked through."""


def declared_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, GIF, JPEG or still WebP; None for other files and damaged headers."""
    file.seek(0)
    start = file.read(30)
    try:
        if start.startswith(PNG):
            return _pair(">II", start, 16)
        if start.startswith(GIF):
            return _pair("<HH", start, 6)
        if start.startswith(JPEG):
            return _jpeg_size(file)
        if start[:4] == b"RIFF" and start[8:15] == b"WEBPVP8":
            return _webp_size(start)
    except struct.error:  # the file ends early
        return None
    return None


def _pair(layout: str, data: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, offset)
    return first, second


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    position = 2
    for _ in range(MAX_SEGMENTS):
        file.seek(position)
        data = file.read(9)
        prefix, marker, length = struct.unpack_from(">BBH", data)
        if prefix != 0xFF:
            return None
        if marker in START_OF_FRAME:
            height, width = _pair(">HH", data, 5)
            return width, height
        position += 2 + length if marker != 0xFF else 1  # 0xFF before a marker is padding
    return None


def _webp_size(start: bytes) -> tuple[int, int] | None:
    if start[12:16] == b"VP8 ":
        width, height = _pair("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    if start[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if start[12:16] == b"VP8X" and len(start) == 30:
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    return None

"""Opens a video or image file with PyAV, selects its picture stream, and reads what the container says about it.

Runs in decoding children only. PyAV has no attribute for the crop, the Dolby Vision profile and the field order of a
stream, but FFmpeg prints them in its description of the file.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av

from pipeline.errors import Rejected

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,jpeg_pipe,png_pipe,webp_pipe,gif,gif_pipe,apng"
)
"""Demuxers that may open an input. Playlists and other formats that refer to files are not among them."""
MAGIC = ((4, b"ftyp", "MP4"), (0, b"\x1aE\xdf\xa3", "Matroska or WebM"), (8, b"AVI ", "AVI"), (0, b"OggS", "Ogg"))
"""(offset, bytes, name) of containers that are recognized although they cannot be read."""
CUT_ANYWHERE = ("mpegts", "mpeg")
"""Demuxers of streams that may be cut anywhere."""
IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")
"""Start of a slice of an IDR picture in an H.264 byte stream."""
ATTACHED_PICTURE, TILE = 0x400, 0x80000
"""FFmpeg's dispositions of an album cover, and of a stream that is only a part of a picture."""
HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer characteristics of HDR video, by their number in ITU-T H.273."""
STILL_BRANDS = frozenset("avif avis heic heix heim heis hevc hevx mif1 miaf jpeg".split())
"""Brands of ISO files that hold pictures: AVIF and HEIF."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamNotes:
    """Facts of a stream from the container, which the decoder does not apply."""

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Coded pixels to remove at the top, bottom, left and right."""
    dolby_vision: int | None = None
    """Dolby Vision profile; None if the stream has none."""
    has_fields: bool = False
    """True if the stream's headers say that its pictures are fields. Its frames may still be progressive."""


class FileView:
    """A file with a position of its own, so that several readers of one file do not disturb each other."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self._position = 0

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes at the position."""
        data = os.pread(self._fd, size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position. Returns the new one."""
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}
        self._position = max(0, starts[whence] + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position


def open_container(file: BinaryIO | FileView) -> Any:
    """A PyAV container that reads from ``file`` only. Other protocols and nested files are refused.

    Raises Rejected if the file is not a video or image of an accepted format.
    """

    def refuse(url: str, flags: int, options: Any) -> BinaryIO:
        raise OSError("an input may not open other files")

    if not file.seek(0, os.SEEK_END):
        raise Rejected("probe", "empty", "the file is empty")
    file.seek(0)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        return av.open(file, mode="r", metadata_errors="ignore", container_options=options, io_open=refuse)
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        file.seek(0)
        start = file.read(12)
        for offset, magic, name in MAGIC:
            if start[offset:].startswith(magic):
                raise Rejected(
                    "probe",
                    "damaged_container",
                    f"the file begins like {name}, but its index cannot be read: it was cut or never finished",
                ) from error
        raise Rejected("probe", "unknown_format", "the file is not a video or image of an accepted format") from error


def best_stream(container: Any) -> Any:
    """The video stream that a player would show. Raises Rejected if there is none that can be decoded."""
    stream = container.streams.best("video")
    if stream is None:
        raise Rejected("probe", "no_video", "the file has no video stream")
    if stream.disposition & ATTACHED_PICTURE:
        moving = [s for s in container.streams.video if not s.disposition & ATTACHED_PICTURE and s.codec_context]
        if not moving:
            raise Rejected("probe", "cover_art", "the file's only picture is an album cover")
        stream = max(moving, key=lambda s: s.codec_context.width * s.codec_context.height)
    if holds_stills(container) and stream.disposition & TILE:
        raise Rejected("probe", "tile_grid", "the picture is made of tiles in a way that is not read")
    if stream.codec_context is None:
        raise Rejected("probe", "unknown_codec", "the video stream's codec is not known")
    return prepare(stream)


def prepare(stream: Any) -> Any:
    """Make a stream decode in one thread and stop at damage. Returns the stream."""
    stream.codec_context.thread_count = 1
    # FFmpeg would conceal damage otherwise, and it would pass as content
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the decoded frames of a stream in order.

    A transport stream may be cut anywhere. Its first packets may then refer to frames before the cut and fail to decode,
    and the first frame is that of the first keyframe.
    """
    cut = _MayBeCut(stream) if container.format.name in CUT_ANYWHERE else None
    for packet in container.demux(stream):
        if not packet.size and packet.pts is not None:
            continue  # PyAV would take a packet without bytes for the end of the stream
        may_fail = cut is not None and cut.may_fail(packet)
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if not may_fail:
                raise


class _MayBeCut:
    """Tells which packets at the start of a stream may fail to decode because the stream was cut before them."""

    def __init__(self, stream: Any) -> None:
        self._is_h264 = stream.codec_context.name == "h264"
        self._key_pts: int | None = None
        self._is_over = False
        self._one_more = False

    def may_fail(self, packet: Any) -> bool:
        """Return True before the first keyframe, and for pictures after it that are shown before it.

        An H.264 keyframe that is not an IDR picture does not reset the numbering of frames. FFmpeg therefore finds a gap
        at the next picture and reports it, though that picture refers to nothing before the keyframe.
        """
        if self._is_over:
            return False
        if self._key_pts is None:
            if not packet.is_keyframe or packet.pts is None:
                return True
            self._key_pts = packet.pts
            self._one_more = self._is_h264 and not IDR.search(bytes(packet))
            return False
        if packet.pts is None or packet.pts < self._key_pts:
            return True
        self._is_over = True
        return self._one_more


def holds_stills(container: Any) -> bool:
    """Return True if the file is an AVIF or HEIF."""
    brands = container.metadata.get("compatible_brands", "") + container.metadata.get("major_brand", "")
    return any(brands[i : i + 4] in STILL_BRANDS for i in range(0, len(brands), 4))


def stream_notes(container: Any, stream: Any) -> StreamNotes:
    """The stream's crop and Dolby Vision profile, from FFmpeg's description of the file."""
    _, _, text = _described(container).partition(f"Stream #0:{stream.index}")
    has_fields = re.search(r"[(,] ?(?:top|bottom) (?:coded )?first\b", text.partition("\n")[0]) is not None
    side_data = text.partition("  Stream #0:")[0].rpartition("    Side data:\n")[2]
    crop = re.search(r"^ *Frame [Cc]ropping: (\d+)/(\d+)/(\d+)/(\d+)$", side_data, re.MULTILINE)
    profile = re.search(r"^ *DOVI configuration record: .*\bprofile: (\d+)", side_data, re.MULTILINE)
    notes = StreamNotes(dolby_vision=int(profile[1]) if profile else None, has_fields=has_fields)
    if not crop:
        return notes
    left, right, top, bottom = map(int, crop.groups())
    if top + bottom >= stream.codec_context.height or left + right >= stream.codec_context.width:
        raise Rejected(
            "probe", "bad_crop", f"the container crops the whole picture away ({top}/{bottom}/{left}/{right})"
        )
    return dataclasses.replace(notes, crop=(top, bottom, left, right))


def _described(container: Any) -> str:
    """FFmpeg's description of the file, which it writes to its log."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        return str(container.dumps_format())
    finally:
        av.logging.set_level(level)

"""Probes a video file and reads its frames in order with PyAV. Runs in decoding children only.

Windows are selected from the presentation times of the shown packets. Headers are only used to detect damaged files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.windows import VideoFacts

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,jpeg_pipe,png_pipe,webp_pipe"
"""Demuxers that may open an input. Playlists and other formats that refer to files are not among them."""
TRUNCATED_S = 0.5
"""A stream that ends this much earlier than its header states is truncated. Intact files differ by less than 0.1 s."""
MAGIC = ((4, b"ftyp", "MP4"), (0, b"\x1aE\xdf\xa3", "Matroska or WebM"), (8, b"AVI ", "AVI"), (0, b"OggS", "Ogg"))
"""(offset, bytes, name) of containers that are recognized although they cannot be read."""
HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer characteristics of HDR video, by their number in ITU-T H.273."""


def open_container(file: BinaryIO) -> Any:
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
    if stream.codec_context is None:
        raise Rejected("probe", "unknown_codec", "the video stream's codec is not known")
    stream.codec_context.thread_count = 1
    # FFmpeg would conceal damage otherwise, and it would pass as content
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


@dataclass(slots=True)
class Packets:
    """Packets of a video stream, after demuxing the whole file."""

    shown: list[int] = field(default_factory=list)
    """Presentation times of the packets that are shown."""
    end_pts: int = 0
    """Presentation time at which the last shown packet ends."""
    total: int = 0
    """Number of packets."""
    hidden: int = 0
    """Number of packets that an edit list hides."""
    corrupt: int = 0
    """Number of packets that FFmpeg knows to be damaged."""
    key_frames: list[tuple[int, int]] = field(default_factory=list)
    """Presentation time of each shown key frame, and the timestamp to seek to for it."""
    open_gop: bool = False
    """Tell if a packet is shown before the keyframe that precedes it in the file."""
    end_s: float = 0.0
    """Seconds at which the last packet of any audio or video stream ends."""


def probe(file: BinaryIO, max_pixels: int, max_duration_s: float) -> VideoFacts:
    """Facts of a video. Raises Rejected if it cannot be read, is damaged, or exceeds a limit."""
    container = open_container(file)
    try:
        stream = best_stream(container)
        if stream.codec_context.width * stream.codec_context.height > max_pixels:
            raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
        packets = _read_packets(container, stream)
        _check_complete(container, stream, packets)
        facts = _facts(container, stream, packets, _first_frame(file))
    finally:
        container.close()
    # checked again, because a false sample aspect ratio would stretch the frames without bound
    if max(facts.coded_width * facts.coded_height, facts.width * facts.height) > max_pixels:
        raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
    if facts.duration_s > max_duration_s:
        raise Rejected(
            "probe",
            "too_long",
            f"{facts.duration_s:.0f} s of video; the limit is {max_duration_s:.0f} s (--max-duration-s)",
        )
    return facts


def frames(file: BinaryIO, facts: VideoFacts) -> Iterator[tuple[int, Any]]:
    """(pts, frame) of every shown frame in order. Raises Rejected at the first sign of damage.

    AVI stores no presentation times, and those that FFmpeg derives are out of order if B-frames are packed. In AVI the
    n-th frame therefore gets the n-th of ``facts.pts``.
    """
    container = open_container(file)
    by_order = facts.container == "avi"
    last: int | None = None
    try:
        for count, frame in enumerate(container.decode(best_stream(container))):
            if frame.is_corrupt:
                raise Rejected("decode", "corrupt_frame", f"frame {count} is damaged")
            if (frame.width, frame.height) != (facts.coded_width, facts.coded_height):
                raise Rejected("decode", "size_changed", f"frame {count} differs in size from the first")
            if by_order and count >= len(facts.pts):
                raise Rejected(
                    "decode",
                    "extra_frames",
                    f"more frames than the {len(facts.pts)} that the index lists",
                )
            pts = facts.pts[count] if by_order else frame.pts
            if pts is None or (last is not None and pts <= last):
                raise Rejected(
                    "decode",
                    "disordered",
                    f"frame {count} is not shown later than the frame before",
                )
            last = pts
            yield pts, frame
    finally:
        container.close()


def upright_rgb(frame: Any) -> npt.NDArray[np.uint8]:
    """The frame as uint8 RGB ``[H,W,3]``, rotated by its display matrix. Alpha is ignored."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _rotation(frame) // 90))


def _read_packets(container: Any, stream: Any) -> Packets:
    packets = Packets()
    key_pts: int | None = None
    for packet in container.demux():
        if packet.size == 0 or packet.pts is None:
            continue
        end = packet.pts + (packet.duration or 0)
        if packet.stream.type in ("video", "audio"):
            packets.end_s = max(packets.end_s, float(end * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        packets.total += 1
        packets.corrupt += packet.is_corrupt
        if packet.has_sidedata("encryption_info"):
            raise Rejected("probe", "encrypted", "the video stream is encrypted")
        if packet.is_keyframe:
            key_pts = packet.pts
        elif key_pts is not None and packet.pts < key_pts:
            packets.open_gop = True
        if packet.is_discard:
            packets.hidden += 1
            continue
        if packet.is_keyframe:
            packets.key_frames.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        packets.shown.append(packet.pts)
        packets.end_pts = max(packets.end_pts, end)
    packets.shown.sort()
    return packets


def _check_complete(container: Any, stream: Any, packets: Packets) -> None:
    """Raise Rejected if the packets show that the file ends early or is damaged."""
    shown = packets.shown
    if not shown:
        raise Rejected("probe", "no_frames", "the video stream has no frames with a presentation time")
    if len(set(shown)) < len(shown):
        raise Rejected("probe", "disordered", "two frames have the same presentation time")
    # not with an edit list, which may drop packets that the header still counts
    if stream.frames and not packets.hidden and abs(stream.frames - packets.total) > 1:
        raise Rejected(
            "probe", "truncated", f"the header counts {stream.frames} frames, the file holds {packets.total}"
        )
    spacing_s = float((shown[-1] - shown[0]) * stream.time_base) / max(1, len(shown) - 1)
    if stream.duration:
        stated_s = float(stream.duration * stream.time_base)
        held_s = float((packets.end_pts - shown[0]) * stream.time_base)
    else:
        stated_s = (container.duration or 0) / av.time_base
        held_s = packets.end_s - (container.start_time or 0) / av.time_base
    if stated_s - held_s > max(TRUNCATED_S, 2 * spacing_s):
        raise Rejected("probe", "truncated", f"the header states {stated_s:.2f} s, the file ends at {held_s:.2f} s")
    if packets.corrupt:
        raise Rejected("probe", "corrupt_packet", f"{packets.corrupt} of {packets.total} packets are damaged")


def _first_frame(file: BinaryIO) -> Any:
    container = open_container(file)
    try:
        for frame in container.decode(best_stream(container)):
            return frame
    finally:
        container.close()
    raise Rejected("decode", "no_frames", "no frame could be decoded")


def _facts(container: Any, stream: Any, packets: Packets, frame: Any) -> VideoFacts:
    shown = packets.shown
    name = container.format.name
    end_pts = packets.end_pts
    if end_pts <= shown[-1]:  # the last frame has no duration, so it gets the mean of the others
        end_pts = shown[-1] + max(1, (shown[-1] - shown[0]) // max(1, len(shown) - 1))
    return VideoFacts(
        container=name.partition(",")[0],
        codec=stream.codec_context.codec.canonical_name,
        coded_width=frame.width,
        coded_height=frame.height,
        rotation=_rotation(frame) % 360,
        sample_aspect=Fraction(stream.sample_aspect_ratio or 1),
        time_base=Fraction(stream.time_base),
        pts=tuple(shown),
        end_pts=end_pts,
        is_image=name.endswith("_pipe"),
        hdr=HDR_TRANSFERS.get(int(frame.color_trc or 0)),
        decord_refusal=_decord_refusal(container, stream, packets, frame),
        key_frames=tuple(sorted(packets.key_frames)),
    )


def _rotation(frame: Any) -> int:
    """Degrees counter-clockwise that turn the frame upright. Raises Rejected for other display matrices."""
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack_from("<5i", bytes(side_data))
            if a * d - b * c < 0:
                raise Rejected("probe", "mirrored", "the display matrix mirrors the picture")
    if frame.rotation % 90:
        raise Rejected("probe", "rotated", f"the display matrix rotates the picture by {frame.rotation} degrees")
    return int(frame.rotation)


def _decord_refusal(container: Any, stream: Any, packets: Packets, frame: Any) -> str | None:
    """Why decord 0.6 would silently return wrong frames, as measured against sequential decoding; None if it would not."""
    if packets.hidden:
        return "an edit list hides frames"
    if packets.open_gop:
        return "open GOP"
    if container.format.name in ("mpegts", "mpeg"):
        return f"container {container.format.name}"
    if "av1" in stream.codec_context.codec.canonical_name:
        return "AV1"
    if not stream.duration and not container.duration:
        return "no duration"
    if frame.format.components[0].bits > 8:
        return "more than 8 bits a sample"
    return None

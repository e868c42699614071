"""Demuxes a whole file and checks that it is complete. Runs in decoding children only.

A header is only used to detect a file that ends early. Windows are selected from the times of the packets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av

from pipeline.errors import Rejected

TRUNCATED_S = 0.5
"""A stream that ends this much earlier than its header states is truncated. Intact files differ by less than 0.1 s."""
COARSE_CLOCK_S = Fraction(1, 1000)
"""Time base of Matroska, WebM, FLV and ASF. Two frames of a fast video may fall into one tick of it."""
MAX_SHIFT_TICKS = 2
"""Ticks by which a frame may be moved so that it is shown later than the frame before."""


class PacketPlace(NamedTuple):
    """Presentation time, position in the file and size of a packet, by which it is recognized when it is read again."""

    pts: int
    position: int | None
    size_bytes: int

    @classmethod
    def of(cls, packet: Any) -> PacketPlace:
        """The place of a PyAV packet."""
        return cls(packet.pts, packet.pos, packet.size)


@dataclass(slots=True)
class Packets:
    """Packets of a video stream, after demuxing the whole file."""

    first: PacketPlace | None = None
    """The stream's first packet in the file."""
    first_timestamp: int = 0
    """Timestamp to seek to for the first packet."""

    shown: list[int] = field(default_factory=list)
    """Presentation times of the packets that are shown."""
    key_frames: list[tuple[int, int]] = field(default_factory=list)
    """Presentation time of each shown key frame, and the timestamp to seek to for it."""
    first_key_pts: int | None = None
    """Presentation time of the first keyframe in the file."""
    end_pts: int = 0
    """Presentation time at which the last shown packet ends."""
    total: int = 0
    """Number of packets with content."""
    hidden: int = 0
    """Number of packets that an edit list hides."""
    corrupt: int = 0
    """Number of packets that FFmpeg knows to be damaged."""
    open_gop: bool = False
    """True if a packet is shown before the keyframe that precedes it in the file."""
    end_s: float = 0.0
    """Seconds at which the last packet of any stream ends, subtitles included."""


def read_packets(container: Any, stream: Any) -> Packets:
    """Demux the whole file. Raises Rejected if the stream is encrypted."""
    packets = Packets()
    key_pts: int | None = None
    for packet in container.demux():
        if packet.size == 0 or packet.pts is None:
            continue
        end = packet.pts + (packet.duration or 0)
        packets.end_s = max(packets.end_s, float(end * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        timestamp = packet.pts if packet.dts is None else packet.dts
        if packets.first is None:
            packets.first, packets.first_timestamp = PacketPlace.of(packet), timestamp
        packets.total += 1
        packets.corrupt += packet.is_corrupt
        if packet.has_sidedata("encryption_info"):
            raise Rejected("probe", "encrypted", "the video stream is encrypted")
        if packet.is_keyframe:
            key_pts = packet.pts
            packets.first_key_pts = key_pts if packets.first_key_pts is None else packets.first_key_pts
        elif key_pts is not None and packet.pts < key_pts:
            packets.open_gop = True
        if packet.is_discard:
            packets.hidden += 1
            continue
        if packet.is_keyframe:
            packets.key_frames.append((packet.pts, timestamp))
        packets.shown.append(packet.pts)
        packets.end_pts = max(packets.end_pts, end)
    packets.shown.sort()
    return packets


def empty_avi_chunks(file: BinaryIO, stream_index: int) -> int:
    """Number of empty chunks of a stream in an AVI file: frames that the recording program dropped.

    FFmpeg passes over them, but the header counts them.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    names = tuple(b"%02d%s" % (stream_index, ending) for ending in (b"dc", b"db"))
    position = empty = 0
    while position + 8 <= size_bytes:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if b"\0" in name:  # not a chunk
            break
        empty += name in names and length == 0
        is_list = name in (b"RIFF", b"LIST")
        position += 12 if is_list else 8 + length + length % 2
    return empty


def check_complete(file: BinaryIO, container: Any, stream: Any, packets: Packets) -> None:
    """Raise Rejected if the packets show that the file ends early or is damaged."""
    shown = packets.shown
    if not shown:
        raise Rejected("probe", "no_frames", "the video stream has no frames with a presentation time")
    lacking = stream.frames - packets.total if stream.frames else 0
    empty = empty_avi_chunks(file, stream.index) if lacking > 0 and container.format.name == "avi" else 0
    # not with an edit list, which may drop packets that the header still counts
    if not packets.hidden and abs(lacking - empty) > 1:
        raise Rejected(
            "probe", "truncated", f"the header counts {stream.frames} frames, the file holds {packets.total + empty}"
        )
    spacing_s = float((shown[-1] - shown[0]) * stream.time_base) / max(1, len(shown) - 1)
    # some programs count a duration in ASF, Matroska and WebM from zero, others from the first packet
    if stream.duration:
        stated_s = float((stream.duration - empty) * stream.time_base)
        first = min(0, shown[0]) if container.format.name == "asf" else shown[0]
        held_s = float((packets.end_pts - first) * stream.time_base)
    else:
        stated_s = (container.duration or 0) / av.time_base
        held_s = packets.end_s - min(0, container.start_time or 0) / av.time_base
    if stated_s - held_s > max(TRUNCATED_S, 2 * spacing_s):
        raise Rejected("probe", "truncated", f"the header states {stated_s:.2f} s, the file ends at {held_s:.2f} s")
    if packets.corrupt:
        raise Rejected("probe", "corrupt_packet", f"{packets.corrupt} of {packets.total} packets are damaged")


class DistinctTimes:
    """Moves frames that share a tick of a coarse clock apart, the same way for packets and for decoded frames."""

    def __init__(self, time_base: Fraction) -> None:
        self._coarse = time_base == COARSE_CLOCK_S
        self._last_pts: int | None = None
        self._last: int | None = None

    def distinct(self, pts: int) -> int | None:
        """A time for the frame at ``pts`` that is later than the frame before; None if there is none near ``pts``."""
        if self._last is None or self._last_pts is None or pts > self._last:
            moved = pts
        elif self._coarse and pts >= self._last_pts and self._last + 1 - pts <= MAX_SHIFT_TICKS:
            moved = self._last + 1
        else:
            return None
        self._last_pts, self._last = pts, moved
        return moved


def distinct_times(packets: Packets, time_base: Fraction) -> list[int]:
    """The presentation times of the shown packets, each later than the one before.

    The two fields of a frame may be two packets with one time; they count as one. Raises Rejected if times cannot be
    told apart.
    """
    times = DistinctTimes(time_base)
    shown = packets.shown if time_base == COARSE_CLOCK_S else sorted(set(packets.shown))
    moved = [times.distinct(pts) for pts in shown]
    if None in moved:
        raise Rejected("probe", "disordered", "several frames have the same presentation time")
    return [pts for pts in moved if pts is not None]

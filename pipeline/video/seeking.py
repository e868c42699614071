"""Frames of distant windows with PyAV: decoding starts at the key frame before each of them. Runs in decoding children only.

A frame that is decoded from a key frame on equals the one of a sequential pass, if it is shown at the key frame's time or
later. Pictures that are shown before it may need frames of the group before, so they are dropped. Every decoded frame must
be the next one that the packets list. If a seek does not deliver that, the rest is read in a sequential pass.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import av
from av.video.frame import PictureType

from pipeline.errors import Rejected
from pipeline.video import pyav_reader
from pipeline.video.containers import best_stream, open_container
from pipeline.video.pyav_reader import FirstPass
from pipeline.video.windows import VideoFacts

MIN_SKIPPED_FRAMES = 32
"""Frames that a seek must save. A seek costs about as much as decoding a few small frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A piece of a video that is decoded in a row."""

    key_pts: int
    """Presentation time of the key frame that it starts with, or of the first shown frame."""
    seek_timestamp: int | None
    """Timestamp to seek to; None for a pass from the beginning of the file."""
    stop_pts: int
    """Presentation time of the last frame that is wanted."""


class _SeekFailed(Exception):
    """A seek did not lead to the frames that the packets list."""


def frames(
    file: BinaryIO, facts: VideoFacts, wanted: Sequence[int], first_pass: FirstPass | None = None
) -> Iterator[tuple[int, Any]]:
    """(pts, frame) in order of at least the wanted frames. ``wanted`` ascends. Raises Rejected at a sign of damage.

    ``first_pass``: the pass that probing began; it goes on if a sequential pass is best.
    """
    passes = plan_passes(facts, wanted)
    begun = first_pass.take_frames() if first_pass and not passes else None
    if first_pass and begun is None:
        first_pass.close()  # which frees the memory of its decoder
    last_pts: int | None = None
    if passes or begun:
        found = _frames_of_passes(file, facts, passes) if begun is None else pyav_reader.checked_frames(begun, facts)
        try:
            for pts, frame in found:
                last_pts = pts
                yield pts, frame
            return
        except (_SeekFailed, Rejected, av.error.FFmpegError):
            pass  # either the seek is to blame, or there is damage that a new sequential pass finds as well
    for pts, frame in pyav_reader.frames(file, facts):
        if last_pts is None or pts > last_pts:
            yield pts, frame


def plan_passes(facts: VideoFacts, wanted: Sequence[int]) -> list[Pass]:
    """The passes that decode the wanted frames; none if one sequential pass from the first frame is best.

    Shapes: m ascending presentation times in, at most m passes out.
    Invariant: no frame is in two passes, and a pass begins ``MIN_SKIPPED_FRAMES`` or more after the end of the one before.
    Example: key frames at 0, 50 and 100, and wanted frames 60, 61 and 120 give passes from 50 to 61 and from 100 to 120.
    """
    if not facts.seekable or not facts.key_frames or not wanted:
        return []
    key_pts = [pts for pts, _ in facts.key_frames]
    span = facts.pts[-1] - facts.pts[0]
    far = span * MIN_SKIPPED_FRAMES // (2 * len(facts.pts))  # half of it, since rates vary; the exact test follows

    def key_before(pts: int, after: int) -> int | None:
        """Number of the key frame to decode a frame from, if it saves enough frames after position ``after``."""
        number = bisect.bisect_right(key_pts, pts) - 1
        if number < 0 or bisect.bisect_left(facts.pts, key_pts[number]) - after < MIN_SKIPPED_FRAMES:
            return None
        return number

    starts = [(0, key_before(wanted[0], 0))]  # positions in ``wanted`` at which a pass starts, with its key frame
    for position, (before, pts) in enumerate(pairwise(wanted), 1):
        if pts - before > far:
            number = key_before(pts, bisect.bisect_left(facts.pts, before) + 1)
            if number is not None:
                starts.append((position, number))
    if starts == [(0, None)]:
        return []
    stops = [position for position, _ in starts[1:]] + [len(wanted)]
    begins = [(facts.pts[0], None) if number is None else facts.key_frames[number] for _, number in starts]
    return [
        Pass(key_pts=key, seek_timestamp=timestamp, stop_pts=wanted[stop - 1])
        for (key, timestamp), stop in zip(begins, stops, strict=True)
    ]


def _frames_of_passes(file: BinaryIO, facts: VideoFacts, passes: list[Pass]) -> Iterator[tuple[int, Any]]:
    """Yield the frames of all passes. Raises _SeekFailed or FFmpegError if seeking does not give them.

    The first frames of an open GOP of H.264 refer to frames before it, also to free their memory. A decoder that starts
    there calls that an error. The passes then start one key frame earlier, and errors up to the key frame are ignored.
    """
    container = open_container(file)
    try:
        stream = best_stream(container)
        early = False
        for part in passes:
            last_pts: int | None = None
            if not early:
                try:
                    for pts, frame in _frames_of_pass(container, stream, facts, part, early=False):
                        last_pts = pts
                        yield pts, frame
                    continue
                except av.error.FFmpegError:
                    early = True
            for pts, frame in _frames_of_pass(container, stream, facts, part, early=True):
                if last_pts is None or pts > last_pts:
                    yield pts, frame
    finally:
        container.close()


def _frames_of_pass(
    container: Any, stream: Any, facts: VideoFacts, part: Pass, early: bool
) -> Iterator[tuple[int, Any]]:
    """Yield the frames of a pass from its key frame on. ``early``: start to decode at the key frame before that."""
    first = position = bisect.bisect_left(facts.pts, part.key_pts)
    reached = part.seek_timestamp is None
    for packet in _packets_of_pass(container, stream, facts, part, early):
        reached = reached or (packet.is_keyframe and packet.pts == part.key_pts)
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            if not reached or (packet.pts is not None and packet.pts < part.key_pts):
                continue  # its references were not decoded
            raise
        for frame in decoded:
            if frame.pts is not None and frame.pts < part.key_pts:
                continue
            _check(frame, facts, position, must_be_key=position == first and part.seek_timestamp is not None)
            position += 1
            yield frame.pts, frame
            if frame.pts >= part.stop_pts:
                return
    raise _SeekFailed


def _packets_of_pass(container: Any, stream: Any, facts: VideoFacts, part: Pass, early: bool) -> Iterator[Any]:
    """Yield the stream's packets from the pass's key frame on, or from the one before that if ``early``."""
    key_pts, timestamp = part.key_pts, part.seek_timestamp
    if timestamp is None:
        if early:
            raise _SeekFailed  # there is nothing before the beginning
        yield from container.demux(stream)
        return
    if early:
        number = bisect.bisect_left(facts.key_frames, (key_pts, timestamp))
        if number == 0:
            raise _SeekFailed
        key_pts, timestamp = facts.key_frames[number - 1]
    container.seek(timestamp, stream=stream, backward=True)
    yield from _packets_from(container, stream, key_pts)


def _packets_from(container: Any, stream: Any, key_pts: int) -> Iterator[Any]:
    """The stream's packets from a key frame on."""
    found = False
    for packet in container.demux(stream):
        if not found:
            found = bool(packet.size) and packet.is_keyframe and packet.pts == key_pts
            if not found and (not packet.size or (packet.is_keyframe and (packet.pts or key_pts) > key_pts)):
                raise _SeekFailed
        if found:
            yield packet


def _check(frame: Any, facts: VideoFacts, position: int, must_be_key: bool) -> None:
    """Raise _SeekFailed if a frame is not the one that the packets list at a position."""
    if position >= len(facts.pts) or frame.pts != facts.pts[position] or frame.is_corrupt:
        raise _SeekFailed
    if (frame.width, frame.height) != (facts.coded_width, facts.coded_height):
        raise _SeekFailed
    if must_be_key and not (frame.key_frame and frame.pict_type == PictureType.I):
        raise _SeekFailed

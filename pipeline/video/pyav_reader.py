"""Probes a video file and reads its frames in order with PyAV. Runs in decoding children only.

Windows are selected from the presentation times of the shown packets. Headers are only used to detect damaged files.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av

from pipeline.errors import Rejected
from pipeline.video.completeness import (
    DistinctTimes,
    PacketPlace,
    Packets,
    check_complete,
    distinct_times,
    read_packets,
)
from pipeline.video.containers import (
    HDR_TRANSFERS,
    FileView,
    StreamNotes,
    best_stream,
    decoded,
    holds_stills,
    open_container,
    stream_notes,
)
from pipeline.video.pictures import heif_grid, webp_animation
from pipeline.video.pictures.declared_size import declared_size
from pipeline.video.pictures.orientation import orientation_of
from pipeline.video.windows import SEEKABLE_CONTAINERS, VideoFacts

FRAMES_FOR_FIELDS = 32
"""Number of frames of a stream with fields that are looked at to find an interlaced one. The first may be progressive."""
ANIMATIONS = ("gif", "apng")
"""Containers of pictures that may move. One with a single frame is an image."""


class FirstPass:
    """A sequential pass over a video, which probing begins and decoding continues.

    FFmpeg decodes frames whenever it opens a file. Therefore one container serves for the packets and for the frames where
    it can be rewound, and the first frame is decoded once.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = FileView(file)  # others read the file between two frames of this pass
        self.container: Any = None
        self.stream: Any = None
        self._frames: Iterator[Any] | None = None

    def open(self) -> None:
        """Open the container, to read the packets. Raises Rejected if that fails."""
        self.close()
        self.container = open_container(self._file)
        self.stream = best_stream(self.container)

    def first_frame(self, packets: Packets) -> Any:
        """The first frame. Raises Rejected if there is none."""
        if not self._rewind(packets):
            self.open()
        frames = decoded(self.container, self.stream)
        first = next(frames, None)
        if first is None:
            raise Rejected("decode", "no_frames", "no frame could be decoded")
        self._frames = itertools.chain([first], frames)
        return first

    def take_frames(self) -> Iterator[Any] | None:
        """All frames in order; None if they were taken before, or if they are not read in this way."""
        frames, self._frames = self._frames, None
        return frames

    def close(self) -> None:
        """Close the container, which may hold memory."""
        self._frames = None
        if self.container is not None:
            self.container.close()
            self.container = None

    def _rewind(self, packets: Packets) -> bool:
        """Return to the first packet after all have been read. False if a seek does not lead there."""
        if not self.container.format.name.startswith(SEEKABLE_CONTAINERS):
            return False
        try:
            self.container.seek(packets.first_timestamp, stream=self.stream)
            found = next(self.container.demux(self.stream), None)
            self.container.seek(packets.first_timestamp, stream=self.stream)
        except av.error.FFmpegError:
            return False
        return found is not None and PacketPlace.of(found) == packets.first


def probe(file: BinaryIO, max_pixels: int, max_duration_s: float, first_pass: FirstPass | None = None) -> VideoFacts:
    """Facts of a video. Raises Rejected if it cannot be read, is damaged, or exceeds a limit.

    ``first_pass`` stays open, so that the caller can decode with it.
    """
    if webp_animation.is_animated(file):
        facts = webp_animation.probe(file, max_pixels)
    elif grid := heif_grid.find_grid(file):
        facts = heif_grid.probe(file, grid, max_pixels)
    elif first_pass is not None:
        facts = _probe(file, max_pixels, first_pass)
    else:
        with contextlib.closing(FirstPass(file)) as own_pass:
            facts = _probe(file, max_pixels, own_pass)
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


def _probe(file: BinaryIO, max_pixels: int, first_pass: FirstPass) -> VideoFacts:
    declared = declared_size(file)
    if declared and declared[0] * declared[1] > max_pixels:
        raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
    first_pass.open()
    context = first_pass.stream.codec_context
    if context.width * context.height > max_pixels:
        raise Rejected("probe", "too_large", f"frames have more than {max_pixels} pixels (--max-pixels)")
    packets = read_packets(first_pass.container, first_pass.stream)
    check_complete(file, first_pass.container, first_pass.stream, packets)
    frame = first_pass.first_frame(packets)
    notes = stream_notes(first_pass.container, first_pass.stream)
    interlaced = frame.interlaced_frame or (
        notes.has_fields and any(frame.interlaced_frame for frame in _frames_from_start(file, FRAMES_FOR_FIELDS))
    )
    return _facts(first_pass.container, first_pass.stream, packets, frame, notes, interlaced=interlaced)


def frames(file: BinaryIO, facts: VideoFacts) -> Iterator[tuple[int, Any]]:
    """(pts, frame) of every shown frame in order. Raises Rejected at the first sign of damage."""
    container = open_container(file)
    try:
        yield from checked_frames(decoded(container, best_stream(container)), facts)
    finally:
        container.close()


def checked_frames(decoded_frames: Iterator[Any], facts: VideoFacts) -> Iterator[tuple[int, Any]]:
    """(pts, frame) of all frames of a video, which come in order. Raises Rejected at the first sign of damage.

    AVI stores no presentation times, and those that FFmpeg derives are out of order if B-frames are packed. In AVI the
    n-th frame therefore gets the n-th of ``facts.pts``.
    """
    by_order = facts.container == "avi"
    times = DistinctTimes(facts.time_base)
    for count, frame in enumerate(decoded_frames):
        if frame.is_corrupt:
            raise Rejected("decode", "corrupt_frame", f"frame {count} is damaged")
        if (frame.width, frame.height) != (facts.coded_width, facts.coded_height):
            raise Rejected("decode", "size_changed", f"frame {count} differs in size from the first")
        if by_order and count >= len(facts.pts):
            raise Rejected("decode", "extra_frames", f"more frames than the {len(facts.pts)} that the index lists")
        pts = facts.pts[count] if by_order else frame.pts
        pts = None if pts is None else times.distinct(pts)
        if pts is None:
            raise Rejected("decode", "disordered", f"frame {count} is not shown later than the frame before")
        yield pts, frame


def _frames_from_start(file: BinaryIO, count: int) -> Iterator[Any]:
    """Yield the first ``count`` frames, or fewer in a shorter video."""
    container = open_container(file)
    try:
        yield from itertools.islice(decoded(container, best_stream(container)), count)
    finally:
        container.close()


def _facts(
    container: Any, stream: Any, packets: Packets, frame: Any, notes: StreamNotes, *, interlaced: bool
) -> VideoFacts:
    name = container.format.name.partition(",")[0]
    time_base = Fraction(stream.time_base)
    shown = distinct_times(packets, time_base)
    if name != "avi":  # whose times are those of its packets in file order
        shown = _from_first_decoded(shown, packets, frame)
    end_pts = packets.end_pts
    if end_pts <= shown[-1]:  # the last frame has no duration, so it gets the mean of the others
        end_pts = shown[-1] + max(1, (shown[-1] - shown[0]) // max(1, len(shown) - 1))
    rotation, mirrored = orientation_of(frame)
    return VideoFacts(
        container=name,
        codec=stream.codec_context.codec.canonical_name,
        coded_width=frame.width,
        coded_height=frame.height,
        crop=notes.crop,
        rotation=rotation,
        mirrored=mirrored,
        sample_aspect=Fraction(stream.sample_aspect_ratio or 1),
        time_base=time_base,
        pts=tuple(shown),
        end_pts=end_pts,
        is_image=name.endswith("_pipe") or (len(shown) == 1 and (name in ANIMATIONS or holds_stills(container))),
        interlaced=interlaced,
        hdr=HDR_TRANSFERS.get(int(frame.color_trc or 0)),
        dolby_vision=notes.dolby_vision,
        decord_refusal=_decord_refusal(container, stream, packets, frame)
        or ("a container's crop" if any(notes.crop) else "a mirrored picture" if mirrored else None)
        or ("a picture's orientation" if rotation and name.endswith("_pipe") else None),
        key_frames=tuple(sorted(key for key in packets.key_frames if key[0] >= shown[0])),
    )


def _from_first_decoded(shown: list[int], packets: Packets, frame: Any) -> list[int]:
    """The times from the first frame that decodes on.

    A stream that was cut at an open GOP begins with pictures that refer to frames before the cut. They are shown before
    the first keyframe, and decoders drop them.
    """
    key_pts = packets.first_key_pts
    if frame.pts is None or key_pts is None or not shown[0] < frame.pts <= key_pts or packets.hidden:
        return shown
    return [pts for pts in shown if pts >= frame.pts]


def _decord_refusal(container: Any, stream: Any, packets: Packets, frame: Any) -> str | None:
    """The reason why decord 0.6 would silently return wrong frames; None if it would not.

    The reasons were found by comparing its frames with those of sequential decoding.
    """
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
    if container.format.name in ANIMATIONS or holds_stills(container):
        return f"container {container.format.name}"
    return None

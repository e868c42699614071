"""A decoding child's session with one video: the requests ``open``, ``scenes``, ``select``, ``next`` and ``close``."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video import pyav_reader, seeking
from pipeline.video.decode_process import SEALS
from pipeline.video.pictures import webp_animation
from pipeline.video.pictures.reading import upright_frames
from pipeline.video.pictures.yuv_scaling import StoredFrame
from pipeline.video.placement import Placement
from pipeline.video.windows import VideoFacts

NO_MEMORY = "decoding needs more memory than --decode-memory-gb allows"
FRAMES_PER_REPLY = 200
"""Number of frames that are decoded only to get to a window, after which a child shows that it still works."""

Frame = npt.NDArray[np.uint8]
"""uint8 RGB ``[H,W,3]``."""
Resize = Callable[[Frame | StoredFrame, Placement, Any], Frame]
Reply = tuple[dict[str, Any], tuple[int, ...]]
"""Plain values, and descriptors of the files that go with them."""


def memfd(name: str, arrays: Sequence[npt.NDArray[Any]]) -> int:
    """Descriptor of a memory file that holds the bytes of contiguous arrays in a row. It can no longer be changed."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for array in arrays:
        view = array.reshape(-1).view(np.uint8).data
        while view:
            view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


class _RequestedWindow(NamedTuple):
    """A window of a ``select`` request."""

    pts: list[int]
    placement: int
    """Number of its placement in the request."""


class Session:
    """One video in a child. Requests come in the order ``open``, ``scenes``, ``select``, ``next`` per window, ``close``."""

    def __init__(self, backend: str, resize: Resize | None) -> None:
        self.backend = backend
        self.resize = resize
        self.file: BinaryIO | None = None
        self.first_pass: pyav_reader.FirstPass | None = None
        self.facts: VideoFacts | None = None
        self.clips: Iterator[list[Frame] | None] = iter(())
        self.detection: Iterator[list[tuple[int, int]] | None] | None = None

    def open(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Probe the video in ``fds[0]``. Replies with its facts, and its presentation times as a file of int64."""
        self.file = os.fdopen(fds[0], "rb")
        self.first_pass = pyav_reader.FirstPass(self.file)
        self.facts = pyav_reader.probe(self.file, request["max_pixels"], request["max_duration_s"], self.first_pass)
        facts = dataclasses.asdict(dataclasses.replace(self.facts, pts=(), key_frames=())) | {
            "sample_aspect": str(self.facts.sample_aspect),
            "time_base": str(self.facts.time_base),
        }
        return {"facts": facts}, (memfd("pts", [np.array(self.facts.pts, dtype=np.int64)]),)

    def detect_scenes(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Find the scenes among the frames at positions ``start`` to ``stop``.

        Replies with a file of int64 ``[n,2]``, the scenes' positions (start, stop) among all frames, or with ``more`` if it
        needs more time: the same request then goes on.
        """
        assert self.file is not None and self.facts is not None
        # forgotten before it goes on: if it fails, the next request must start a new one
        detection, self.detection = self.detection or self._detect(request), None
        scenes = next(detection)
        if scenes is None:
            self.detection = detection
            return {"more": True}, ()
        return {"count": len(scenes)}, (memfd("scenes", [np.array(scenes, dtype=np.int64)]),)

    def _detect(self, request: dict[str, Any]) -> Iterator[list[tuple[int, int]] | None]:
        """Yield None after every ``FRAMES_PER_REPLY`` frames, then the scenes."""
        from pipeline.video.scene_detectors import make_detector

        assert self.file is not None and self.facts is not None
        start, stop = request["start"], request["stop"]
        if self.facts.container == webp_animation.CONTAINER:  # short, and not read by the detectors' decoder
            yield [(start, stop)]
            return
        detector = make_detector(request["method"], request["threshold"], self.facts)
        wanted = self.facts.pts[start:stop]
        shown = 0
        for decoded, (pts, frame) in enumerate(seeking.frames(self.file, self.facts, wanted), 1):
            if pts > wanted[-1]:
                break
            if pts >= wanted[0]:
                detector.add(frame)
                shown += 1
            if decoded % FRAMES_PER_REPLY == 0:
                yield None
        if shown != len(wanted):
            raise Rejected(
                "decode", "missing_frame", f"{len(wanted) - shown} frames that the index lists do not decode"
            )
        yield [(start + begin, start + end) for begin, end in detector.scenes()]

    def select(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Start to decode the windows in ``fds[0]``. Replies with the name of the decoder.

        Shape: one int64 array ``[n, length_1 .. length_n, placement_1 .. placement_n, pts of window 1, .., of window n]``.
        Invariant: the lengths add up to the number of presentation times; the last ones of the windows ascend.
        Example: ``[2, 3, 2, 0, 0, 0, 1, 2, 3, 4]`` stands for windows (0, 1, 2) and (3, 4), both with placement 0.
        """
        assert self.file is not None and self.facts is not None
        with os.fdopen(fds[0], "rb") as f:
            f.seek(0)
            count, *numbers = np.frombuffer(f.read(), dtype=np.int64).tolist()
        windows, start = [], 2 * count
        for length, placement in zip(numbers[:count], numbers[count : 2 * count], strict=True):
            windows.append(_RequestedWindow(numbers[start : start + length], placement))
            start += length
        wanted = sorted({pts for window in windows for pts in window.pts})
        frames: Iterator[tuple[int, Frame | StoredFrame | None]] | None = None
        changed = request["deinterlace"] or request["tone_map"]  # by filters of frames, which decord does not give
        if self.backend == "decord" and self.facts.decord_refusal is None and not changed:
            from pipeline.video import decord_reader

            frames = decord_reader.frames(self.file, self.facts, wanted)
            if frames is not None and self.first_pass is not None:
                self.first_pass.close()
        decoder = "pyav" if frames is None else "decord"
        if frames is None:
            frames = upright_frames(
                self.file,
                self.facts,
                wanted,
                deinterlace=request["deinterlace"],
                tone_map=request["tone_map"],
                first_pass=self.first_pass,
                as_stored=request["resize"] == "ffmpeg" and self.resize is not None,
            )
        placements = [Placement(**placement) for placement in request["placements"]]
        self.clips = self._gather(frames, windows, placements, request["resize"])
        return {"decoder": decoder}, ()

    def close(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Close the video, which may hold memory."""
        self.clips = iter(())
        if self.first_pass is not None:
            self.first_pass.close()
        if self.file is not None:
            self.file.close()
            self.file = None
        return {}, ()

    def next(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Decode the next window. Replies with a file of uint8 ``[T,H,W,3]``, or with ``more`` if it needs more time.

        The frames have the bucket's size if this child can resize, else the video's own.
        """
        clip = next(self.clips)
        if clip is None:
            return {"more": True}, ()
        return {"shape": (len(clip), *clip[0].shape)}, (memfd("frames", clip),)

    def _gather(
        self,
        frames: Iterator[tuple[int, Frame | StoredFrame | None]],
        windows: list[_RequestedWindow],
        placements: list[Placement],
        method: str,
    ) -> Iterator[list[Frame] | None]:
        """Yield the clip of each window, in one pass over the frames; None after each ``FRAMES_PER_REPLY`` unwanted ones.

        Shapes: ``frames`` yields (pts, ``[H,W,3]``), without pixels if no window needs it; a clip has T frames of one size.
        Invariant: pts of ``frames`` and ends of windows ascend. Frames before all windows that remain are dropped.
        Example: windows (0, 1, 1) and (1, 2) decode frames 0, 1, 2 once; the first clip has frame 1 twice.
        """
        uses: dict[int, set[int]] = {}
        for window in windows:
            for pts in window.pts:
                uses.setdefault(pts, set()).add(window.placement)
        first_needed = list(itertools.accumulate((window.pts[0] for window in reversed(windows)), min))[::-1]
        kept: dict[tuple[int, int], Frame] = {}
        reached, unwanted = False, 0
        for window, first in zip(windows, first_needed, strict=True):
            kept = {key: frame for key, frame in kept.items() if key[0] >= first}
            reached = (window.pts[-1], window.placement) in kept
            while not reached:
                pts, frame = next(frames, (window.pts[-1] + 1, None))
                if frame is not None:
                    for number in uses[pts]:
                        resized = frame if self.resize is None else self.resize(frame, placements[number], method)
                        kept[pts, number] = np.ascontiguousarray(resized)
                else:
                    unwanted += 1
                    if unwanted % FRAMES_PER_REPLY == 0:
                        yield None
                reached = pts >= window.pts[-1]
            missing = [pts for pts in window.pts if (pts, window.placement) not in kept]
            if missing:
                raise Rejected("decode", "missing_frame", f"{len(missing)} frames that the index lists do not decode")
            yield [kept[pts, window.placement] for pts in window.pts]


def answer(session: Session, request: dict[str, Any], fds: list[int]) -> Reply:
    """The reply to one request. Every error in a decoder is a reject of this item, so all are caught here."""
    stage = "probe" if request["op"] == "open" else "decode"
    try:
        operations = {
            "open": session.open,
            "scenes": session.detect_scenes,
            "select": session.select,
            "next": session.next,
            "close": session.close,
        }
        return operations[request["op"]](request, fds)
    except Rejected as rejected:
        error = list(dataclasses.astuple(rejected.reject))
    except (MemoryError, BlockingIOError):  # BlockingIOError ("try again"): no room for a thread's stack
        error = [stage, "memory", NO_MEMORY]
    except av.error.FFmpegError as failure:
        # FFmpeg's own log has more detail, but that may be of another file, or contain pieces of this one
        error = [stage, "invalid_data", f"the {stage} failed: {failure.strerror}"]
    except Exception as failure:  # item boundary: PyAV raises IndexError, UnicodeDecodeError and more on damaged files
        error = [stage, "decoder_error", f"the decoder raised {type(failure).__name__}"]
        if "allocate memory" in str(failure):  # torch raises RuntimeError
            error = [stage, "memory", NO_MEMORY]
    return {"error": error}, ()

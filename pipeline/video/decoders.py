"""Videos to clips, through child processes that may crash, hang or return nonsense without harm to anything else.

Each child decodes one video at a time on one core. It receives the file as a descriptor and returns frames as
descriptors. It has no credentials and no network, limits on memory and processor time, and a deadline.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.errors import Reject, Rejected
from pipeline.recipe import Recipe, Run
from pipeline.video.decode_process import DecodeChild, DecodeServer
from pipeline.video.outcomes import Clip, Decoded, Frames, Outcome, RejectedWindow
from pipeline.video.windows import Skip, VideoFacts, Window, repeats

RETRYABLE_REASONS = ("timeout", "memory", "crash")
"""Reasons of rejects that may not occur again in another child. The video is tried once more."""
MAX_GROWTH = 0.25
"""Share of its memory limit that a child may keep after a video. Damaged videos leak; a child that keeps more is ended."""

WindowSelector = Callable[[VideoFacts], Sequence[Window | Skip]]


class Decoders:
    """Decoding children behind one fork server. Any number of threads may call ``clips``; each call has its own child."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self._recipe = recipe
        self._limits = {
            "max_pixels": recipe.max_pixels,
            "max_duration_s": recipe.max_duration_s,
            "memory_bytes": run.decode_memory_bytes,
            "timeout_s": run.decode_timeout_s,
        }
        self._server = DecodeServer(recipe.decoder)
        self._idle: list[DecodeChild] = []

    def close(self) -> None:
        """End the server and all children."""
        self._server.close()

    def clips(self, fd: int, select: WindowSelector) -> Iterator[Decoded]:
        """Yield exactly one outcome, in order, for every window that ``select`` returns for the video in ``fd``.

        The child works on this video until the last outcome is taken or the iterator is closed. Damage rejects the window
        in which it shows and all later ones. After a crash, a hang or a lack of memory the rest is tried once more.
        """
        child: DecodeChild | None = None
        try:
            video = _Video(fd, select, self._recipe, self._limits)
            for last_try in (False, True):
                # the second try gets a fresh child, since an idle one may have lost memory to its last video
                child = self._server.fork() if last_try else self._take()
                try:
                    yield from video.outcomes(child)
                    return
                except Rejected as rejected:
                    if rejected.reject.reason in RETRYABLE_REASONS:
                        child.end()
                        child = None
                        if not last_try:
                            continue
                    yield from video.reject_rest(rejected.reject)
                    return
        finally:
            if child is not None:
                self._release(child)

    def _take(self) -> DecodeChild:
        """An idle child, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._server.fork()

    def _release(self, child: DecodeChild) -> None:
        """Keep the child for another video. It closes this one first, since that may hold memory."""
        try:
            reply, _ = child.request({"op": "close"} | self._limits)
        except Rejected:
            child.end()
            return
        if reply.get("grown_bytes", 0) > MAX_GROWTH * self._limits["memory_bytes"]:
            child.end()
        else:
            self._idle.append(child)


class _Video:
    """One video. It remembers which windows are done, so that another child can continue."""

    def __init__(self, fd: int, select: WindowSelector, recipe: Recipe, limits: dict[str, Any]) -> None:
        self.fd = fd
        self.select = select
        self.recipe = recipe
        self.limits = limits
        self.facts: VideoFacts | None = None
        self.remaining: list[Window | Skip] | None = None
        """Windows without an outcome, in order; None until the video has been probed."""

    def outcomes(self, child: DecodeChild) -> Iterator[Decoded]:
        """Yield the outcomes that remain, through this child. Raises Rejected if it cannot continue."""
        self.facts = facts = self._open(child)
        if facts.dolby_vision == 5 and self.recipe.dolby_vision == "reject":
            raise Rejected(
                "probe", "dolby_vision", "Dolby Vision profile 5 has colors that only its own decoders can show"
            )
        if self.remaining is None:
            self.remaining = list(self.select(facts))
        windows = [window for window in self.remaining if isinstance(window, Window)]
        decoder = self._send_windows(child, facts, windows) if windows else ""
        while self.remaining:
            window = self.remaining[0]
            outcome: Outcome = window if isinstance(window, Skip) else self._next(child, window, decoder)
            self.remaining.pop(0)
            yield facts, outcome

    def reject_rest(self, reject: Reject) -> Iterator[Decoded]:
        """Yield a reject for each window that remains. Skips stay skips."""
        for window in self.remaining if self.remaining is not None else [None]:
            if isinstance(window, Skip):
                yield self.facts, window
            else:
                yield self.facts, RejectedWindow(index=window.index if window else 0, reject=reject)

    def _open(self, child: DecodeChild) -> VideoFacts:
        reply, pts = child.request({"op": "open"} | self.limits, self.fd)
        facts = reply["facts"] | {
            "pts": tuple(np.frombuffer(pts, dtype=np.int64).tolist()),
            "sample_aspect": Fraction(reply["facts"]["sample_aspect"]),
            "time_base": Fraction(reply["facts"]["time_base"]),
            "crop": tuple(reply["facts"]["crop"]),
        }
        return VideoFacts(**facts)

    def _send_windows(self, child: DecodeChild, facts: VideoFacts, windows: list[Window]) -> str:
        """Tell the child which windows to decode. Returns the name of the decoder that it uses.

        Shape: one int64 array ``[n, length_1 .. length_n, pts of window 1, .., pts of window n]``.
        Invariant: the lengths add up to the number of presentation times.
        Example: windows with pts (0, 1, 2) and (3, 4) are sent as ``[2, 3, 2, 0, 1, 2, 3, 4]``.
        """
        lengths = [len(window.pts) for window in windows]
        pts = [p for window in windows for p in window.pts]
        fd = os.memfd_create("windows")  # hours of video have more windows than fit into a message
        try:
            os.write(fd, np.array([len(lengths), *lengths, *pts], dtype=np.int64).tobytes())
            request = {
                "op": "select",
                "placement": dataclasses.asdict(windows[0].placement),
                "resize": self.recipe.resize,
                "deinterlace": facts.interlaced and self.recipe.interlaced == "deinterlace",
                "tone_map": facts.hdr is not None and self.recipe.hdr == "tonemap",
            }
            reply, _ = child.request(request | self.limits, fd)
        finally:
            os.close(fd)
        return str(reply["decoder"])

    def _next(self, child: DecodeChild, window: Window, decoder: str) -> Outcome:
        """Decode the next window. It becomes a skip if more of its frames repeat than the recipe allows."""
        reply, content = child.request({"op": "next"} | self.limits)
        frames_THWC = np.frombuffer(content, dtype=np.uint8).reshape(reply["shape"])
        if frames_THWC.shape[1:3] != (window.bucket.height, window.bucket.width):
            frames_THWC = self._resized(frames_THWC, window)
        still = sum(np.array_equal(a, b) for a, b in pairwise(frames_THWC))
        if still / max(1, len(frames_THWC) - 1) > max(self.recipe.max_repeats, repeats(window.pts)):
            return Skip(index=window.index, reason="frozen_frames")
        return Clip(window=window, frames_THWC=frames_THWC, decoder=decoder)

    def _resized(self, frames_THWC: Frames, window: Window) -> Frames:
        from pipeline.video.resize import resize_frame

        return np.stack([resize_frame(frame, window.placement, self.recipe.resize) for frame in frames_THWC])

"""Videos to clips, through child processes that may crash, hang or return nonsense without harm to anything else.

Each child decodes one video at a time on one core. It receives the file as a descriptor and returns frames as
descriptors. It is confined to them as far as the kernel can do that, and has limits on memory and processor time, and
a deadline.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, Reject, Rejected
from pipeline.recipe import Recipe, Run
from pipeline.video.confinement.child import is_opened_by_path
from pipeline.video.confinement.replies import (
    MAX_FRAMES,
    Content,
    read_decoder,
    read_facts,
    read_frames,
    read_scenes,
    reading_reply,
)
from pipeline.video.decode_process import DecodeChild, DecodeServer
from pipeline.video.outcomes import Clip, Decoded, Frames, Outcome, RejectedWindow
from pipeline.video.ranges import Range, in_decoding_order, positions_in_range
from pipeline.video.windows import Skip, VideoFacts, Window, repeats

RETRYABLE_REASONS = ("timeout", "memory", "crash")
"""Reasons of rejects that may not occur again in another child. The video is tried once more."""
MAX_GROWTH = 0.25
"""Share of its memory limit that a child may keep after a video. Damaged videos leak; a child that keeps more is ended."""
MAX_REPLIES = MAX_FRAMES // 100
"""Number of replies after which a child that always needs more time is ended. It decodes 200 frames for each."""

WindowSelector = Callable[[VideoFacts], Sequence[Window | Skip]]
RangeSelector = Callable[[VideoFacts, Range | None], Sequence[Window | Skip]]


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
        self._server = DecodeServer(recipe.decoder, recipe.scenes)
        self.confinement = self._server.confinement
        """Measures against the children, and the attacks that are possible in spite of them."""
        if run.confine == "require" and not self.confinement.is_complete:
            self._server.close()
            raise ConfigError(f"--confine require is not met here: {self.confinement}")
        self._opens_by_path = recipe.decoder == "decord"
        self._idle: list[DecodeChild] = []

    def close(self) -> None:
        """End the server and all children."""
        self._server.close()

    def clips(self, fd: int, select: WindowSelector) -> Iterator[Decoded]:
        """Yield exactly one outcome, in order, for every window that ``select`` returns for the video in ``fd``.

        The child works on this video until the last outcome is taken or the iterator is closed. Damage rejects the window
        in which it shows and all later ones. After a crash, a hang or a lack of memory the rest is tried once more.
        """
        for _, decoded in self.clips_of_ranges(fd, [None], [lambda facts, _: select(facts)]):
            yield decoded

    def clips_of_ranges(
        self, fd: int, ranges: Sequence[Range | None], selectors: Sequence[RangeSelector]
    ) -> Iterator[tuple[int, Decoded]]:
        """Decode several ranges of one video in one pass. Yields each outcome with the number of its range.

        Each range has its own ``select(facts, item_range)``, which returns its windows. If the recipe has scenes, the facts
        hold those of the range. Outcomes are those of ``clips`` for each range alone. They are in order for each range and
        group of buckets; ranges and groups are mixed, since frames are decoded once and in order.
        """
        video = _Video(fd, ranges, selectors, self._recipe, self._limits)
        while not video.is_done:
            yield from self._until_failure(video)

    def _until_failure(self, video: _Video) -> Iterator[tuple[int, Decoded]]:
        """Yield the outcomes of a video up to a failure that remains, and the rejects that it causes."""
        child: DecodeChild | None = None
        try:
            for last_try in (False, True):
                # the second try gets a fresh child, since an idle one may have lost memory to its last video
                child = self._server.fork() if last_try else self._take(video.fd)
                try:
                    yield from video.outcomes(child)
                    return
                except Rejected as rejected:
                    if rejected.reject.reason in RETRYABLE_REASONS:
                        child.end()
                        child = None
                        if not last_try:
                            continue
                    yield from video.reject_range(rejected.reject)
                    return
        finally:
            if child is not None:
                self._release(child)

    def _take(self, fd: int) -> DecodeChild:
        """An idle child, or a new one for a large file that an idle child has no right to open by path, as decord does."""
        if self._opens_by_path and is_opened_by_path(fd):
            return self._server.fork()
        try:
            return self._idle.pop()
        except IndexError:
            return self._server.fork()

    def _release(self, child: DecodeChild) -> None:
        """Keep the child for another video. It closes this one first, since that may hold memory."""
        try:
            reply, _ = child.request({"op": "close"} | self._limits)
            with reading_reply("decode"):
                has_grown = int(reply["grown_bytes"]) > MAX_GROWTH * self._limits["memory_bytes"]
        except Rejected:
            child.end()
            return
        if has_grown or not reply.get("takes_others"):
            child.end()
        else:
            self._idle.append(child)


class _Video:
    """One video with the ranges to decode. It remembers which windows are done, so that another child can continue."""

    def __init__(
        self,
        fd: int,
        ranges: Sequence[Range | None],
        selectors: Sequence[RangeSelector],
        recipe: Recipe,
        limits: dict[str, Any],
    ) -> None:
        self.fd = fd
        self.ranges = ranges
        self.selectors = selectors
        self.recipe = recipe
        self.limits = limits
        self.facts: VideoFacts | None = None
        self.remaining: list[tuple[int, Window | Skip | RejectedWindow]] | None = None
        """Windows without an outcome, each with the number of its range, in the order of decoding.

        None until the windows of every range are known.
        """
        self._selected: list[Sequence[Window | Skip | RejectedWindow]] | None = None
        """The windows of the first ranges; None before probing."""

    @property
    def is_done(self) -> bool:
        """True once every window has an outcome."""
        return self.remaining == []

    def outcomes(self, child: DecodeChild) -> Iterator[tuple[int, Decoded]]:
        """Yield the outcomes that remain, through this child. Raises Rejected if it cannot continue."""
        if self.remaining is None or any(isinstance(window, Window) for _, window in self.remaining):
            self.facts = self._open(child)
        assert self.facts is not None
        facts = self.facts
        if facts.dolby_vision == 5 and self.recipe.dolby_vision == "reject":
            raise Rejected(
                "probe", "dolby_vision", "Dolby Vision profile 5 has colors that only its own decoders can show"
            )
        if self.remaining is None:
            self._selected = self._selected or []
            for number in range(len(self._selected), len(self.ranges)):
                self._selected.append(self._select(child, facts, number))
            self.remaining = in_decoding_order(self._selected)
        windows = [window for _, window in self.remaining if isinstance(window, Window)]
        decoder = self._send_windows(child, facts, windows) if windows else ""
        while self.remaining:
            number, window = self.remaining[0]
            outcome: Outcome = self._next(child, window, decoder) if isinstance(window, Window) else window
            self.remaining.pop(0)
            yield number, (facts, outcome)

    def reject_range(self, reject: Reject) -> Iterator[tuple[int, Decoded]]:
        """Yield a reject for each window that remains in the range where decoding failed. Skips stay skips.

        All ranges are rejected if the video could not be probed. The others are too if nothing behind the failure can be
        reached. A range whose scenes could not be found is one reject.
        """
        reachable = self.facts is not None and self.facts.seekable
        if self.remaining is None and self._selected is not None:
            failed = 1 if reachable else len(self.ranges) - len(self._selected)
            self._selected += [[RejectedWindow(index=0, reject=reject)]] * failed
            return
        if self.remaining is None:
            self.remaining = []
            for number in range(len(self.ranges)):
                yield number, (self.facts, RejectedWindow(index=0, reject=reject))
            return
        failed = next(number for number, window in self.remaining if isinstance(window, Window))
        rejected = [entry for entry in self.remaining if entry[0] == failed or not reachable]
        self.remaining = [entry for entry in self.remaining if entry[0] != failed and reachable]
        for number, window in rejected:
            if isinstance(window, Window):
                yield number, (self.facts, RejectedWindow.of(window, reject))
            else:
                yield number, (self.facts, window)

    def _select(self, child: DecodeChild, facts: VideoFacts, number: int) -> Sequence[Window | Skip | RejectedWindow]:
        """The windows of one range. A range without frames, or whose scenes cannot be found, is one reject."""
        item_range, select = self.ranges[number], self.selectors[number]
        try:
            if self.recipe.scenes != "none" and not facts.is_image:
                positions = positions_in_range(facts, item_range, self.recipe.range_unit)
                facts = dataclasses.replace(facts, scenes=self._scenes(child, *positions))
            return select(facts, item_range)
        except Rejected as rejected:
            if rejected.reject.reason in RETRYABLE_REASONS:
                raise
            return [RejectedWindow(index=0, reject=rejected.reject)]

    def _scenes(self, child: DecodeChild, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Positions (start, stop) of the scenes between two positions in the video's frames."""
        request = {"op": "scenes", "start": start, "stop": stop}
        request |= {"method": self.recipe.scenes, "threshold": self.recipe.scene_threshold}
        _, content = self._request(child, request)
        return read_scenes(content, start, stop)

    def _open(self, child: DecodeChild) -> VideoFacts:
        reply, pts = child.request({"op": "open"} | self.limits, self.fd)
        return read_facts(reply, pts, self.limits)

    def _send_windows(self, child: DecodeChild, facts: VideoFacts, windows: list[Window]) -> str:
        """Tell the child which windows to decode. Returns the name of the decoder that it uses.

        Shape: one int64 array ``[n, length_1 .. length_n, placement_1 .. placement_n, pts of window 1, .., of window n]``.
        Invariant: the lengths add up to the number of presentation times; the last ones of the windows ascend.
        Example: windows (0, 1, 2) and (3, 4) with one placement are sent as ``[2, 3, 2, 0, 0, 0, 1, 2, 3, 4]``.
        """
        lengths = [len(window.pts) for window in windows]
        placements = list(dict.fromkeys(window.placement for window in windows))
        numbers = [placements.index(window.placement) for window in windows]
        pts = [p for window in windows for p in window.pts]
        fd = os.memfd_create("windows")  # hours of video have more windows than fit into a message
        try:
            os.write(fd, np.array([len(lengths), *lengths, *numbers, *pts], dtype=np.int64).tobytes())
            request = {
                "op": "select",
                "placements": [dataclasses.asdict(placement) for placement in placements],
                "resize": self.recipe.resize,
                "deinterlace": facts.interlaced and self.recipe.interlaced == "deinterlace",
                "tone_map": facts.hdr is not None and self.recipe.hdr == "tonemap",
            }
            reply, _ = child.request(request | self.limits, fd)
        finally:
            os.close(fd)
        return read_decoder(reply)

    def _next(self, child: DecodeChild, window: Window, decoder: str) -> Outcome:
        """Decode the next window. It becomes a skip if more of its frames repeat than the recipe allows."""
        frames_THWC = read_frames(*self._request(child, {"op": "next"}), len(window.pts))
        if frames_THWC.shape[1:3] != (window.bucket.height, window.bucket.width):
            frames_THWC = self._resized(frames_THWC, window)
        still = sum(_are_equal(a, b) for a, b in pairwise(frames_THWC))
        if still / max(1, len(frames_THWC) - 1) > max(self.recipe.max_repeats, repeats(window.pts)):
            return Skip(index=window.index, reason="frozen_frames", group=window.group)
        return Clip(window=window, frames_THWC=frames_THWC, decoder=decoder)

    def _request(self, child: DecodeChild, request: dict[str, Any]) -> tuple[dict[str, Any], Content]:
        """Repeat a request until the child is done. It may take long, and a reply with ``more`` shows that it works."""
        for _ in range(MAX_REPLIES):
            reply, content = child.request(request | self.limits)
            if not reply.get("more"):
                return reply, content
        raise Rejected("decode", "crash", "the decoder's replies do not end")

    def _resized(self, frames_THWC: Frames, window: Window) -> Frames:
        from pipeline.video.resize import resize_frame

        return np.stack([resize_frame(frame, window.placement, self.recipe.resize) for frame in frames_THWC])


def _are_equal(a_HWC: npt.NDArray[np.uint8], b_HWC: npt.NDArray[np.uint8]) -> bool:
    """Return True if two frames have the same pixels. Most have not, and a few rows show that already."""
    return np.array_equal(a_HWC[::16], b_HWC[::16]) and np.array_equal(a_HWC, b_HWC)

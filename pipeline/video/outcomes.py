"""Outcomes of a video's windows: a clip, a skip or a reject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import Reject
from pipeline.video.windows import Scene, Skip, VideoFacts, Window

Frames = npt.NDArray[np.uint8]
"""uint8 RGB frames ``[T,H,W,3]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A decoded window at the size of its bucket."""

    window: Window
    frames_THWC: Frames
    decoder: str
    """The decoder that read it: ``pyav`` or ``decord``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedWindow:
    """A window that cannot be used. Index 0 without a group stands for the whole item if its windows are not known."""

    index: int
    reject: Reject
    scene: Scene | None = None
    group: str = ""
    """Name of the group of buckets; empty without groups, and if the windows are not known."""

    @classmethod
    def of(cls, window: Window, reject: Reject) -> RejectedWindow:
        """The reject of a selected window."""
        return cls(index=window.index, reject=reject, scene=window.scene, group=window.group)


Outcome = Clip | Skip | RejectedWindow
Decoded = tuple[VideoFacts | None, Outcome]
"""An outcome with the video's facts; None if the video could not be probed."""

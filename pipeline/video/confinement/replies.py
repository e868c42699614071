"""Checks what a decoding child replies: its decoder may run code of the input, and then every value may be a lie.

A reply that no child of ours sends is a reject of the item. It must not cost the encoder more memory or time than the
largest video that the recipe allows.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video.windows import VideoFacts

Content = mmap.mmap | bytes
"""Bytes of the file that comes with a reply."""
MAX_FRAMES = 1 << 24
"""Largest number of frames of a video: three days at 60 frames per second."""
MAX_MESSAGE = 4000
"""Longest message of a reject in characters."""
MAX_TEXT = 500
"""Longest text among a video's facts in characters."""
RATIO = re.compile(r"[0-9]{1,10}(?:/[0-9]{1,10})?")
"""A ratio of two numbers of 32 bits, as FFmpeg has them."""
REASON = re.compile(r"[a-z_]{1,40}")
CHILD_STAGES = ("probe", "decode")
DECODERS = ("pyav", "decord")
FACT_TYPES = {
    name: tuple(get_origin(part) or part for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))
    for name, hint in get_type_hints(VideoFacts).items()
}
"""Types of each field of ``VideoFacts``, for ``isinstance``."""


@contextlib.contextmanager
def reading_reply(stage: str) -> Iterator[None]:
    """Reject the item if a reply cannot be used."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise Rejected(stage, "crash", f"the decoder's reply makes no sense: {type(error).__name__}") from error


def read_reject(values: Any) -> Rejected:
    """The reject that a child replies, to be raised. ValueError if it is none of ours."""
    stage, reason, message = values
    if stage not in CHILD_STAGES or not REASON.fullmatch(reason):
        raise ValueError("a reject of no known kind")
    return Rejected(stage, reason, str(message)[:MAX_MESSAGE])


def read_facts(reply: Mapping[str, Any], pts: Content, limits: Mapping[str, Any]) -> VideoFacts:
    """The facts in the reply to ``open``. ``limits``: ``max_pixels`` and ``max_duration_s`` of the recipe."""
    with reading_reply("probe"):
        if len(pts) > 8 * MAX_FRAMES:
            raise ValueError("too many frames")
        found = reply["facts"]
        values = found | {
            "pts": tuple(np.frombuffer(pts, dtype=np.int64).tolist()),
            "sample_aspect": _ratio(found["sample_aspect"]),
            "time_base": _ratio(found["time_base"]),
            "crop": tuple(map(int, found["crop"])),
            "key_frames": (),
            "scenes": None,
        }
        facts = VideoFacts(**values)
        for name, types in FACT_TYPES.items():
            value = getattr(facts, name)
            if not isinstance(value, types) or (isinstance(value, str) and len(value) > MAX_TEXT):
                raise TypeError(f"{name} is a {type(value).__name__}")
        _check_facts(facts, limits)
        return facts


def read_scenes(content: Content, start: int, stop: int) -> tuple[tuple[int, int], ...]:
    """The scenes in the reply to ``scenes``: one after the other, they fill the positions from ``start`` to ``stop``."""
    with reading_reply("decode"):
        if len(content) > 16 * (stop - start):
            raise ValueError("more scenes than frames")
        scenes = tuple((int(a), int(b)) for a, b in np.frombuffer(content, dtype=np.int64).reshape(-1, 2))
        ends = [start, *(end for _, end in scenes)]
        if not scenes or ends[-1] != stop or any(a != end or a >= b for (a, b), end in zip(scenes, ends, strict=False)):
            raise ValueError("scenes that do not fill their range")
        return scenes


def read_decoder(reply: Mapping[str, Any]) -> str:
    """The name of the decoder in the reply to ``select``."""
    with reading_reply("decode"):
        return DECODERS[DECODERS.index(reply["decoder"])]


def read_frames(reply: Mapping[str, Any], content: Content, num_frames: int) -> npt.NDArray[np.uint8]:
    """The frames in the reply to ``next``, uint8 ``[T,H,W,3]`` of any size."""
    with reading_reply("decode"):
        shape = [int(size) for size in reply["shape"]]
        if len(shape) != 4 or shape[0] != num_frames or shape[3] != 3 or min(shape) < 1:
            raise ValueError("frames of another shape")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _ratio(text: str) -> Fraction:
    if not RATIO.fullmatch(text):
        raise ValueError("not a ratio")
    return Fraction(text)


def _check_facts(facts: VideoFacts, limits: Mapping[str, Any]) -> None:
    """Raise ValueError for facts of no video, or of one beyond the recipe's limits, which a child of ours rejects."""
    sizes = (facts.width, facts.height, facts.coded_width, facts.coded_height)
    if not facts.pts or min(sizes) <= 0 or facts.time_base <= 0 or facts.rotation not in (0, 90, 180, 270):
        raise ValueError("a video without frames, time or size")
    times = np.array([*facts.pts, facts.end_pts])
    if times.dtype != np.int64 or (times[1:] < times[:-1]).any():
        raise ValueError("times that do not ascend")
    pixels = max(facts.coded_width * facts.coded_height, facts.width * facts.height)
    if pixels > limits["max_pixels"] or not 0 <= facts.duration_s <= limits["max_duration_s"]:
        raise ValueError("a video beyond the recipe's limits")
    if facts.dolby_vision is not None and not 0 <= facts.dolby_vision < 256:
        raise ValueError("an unknown profile")

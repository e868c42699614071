"""Captions and metadata beyond what one unit can hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.encode import unit_text
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.clips_maker import make_image
from tests.support.oracle import assert_sound


def test_a_unit_with_too_much_text_ends_with_rejects(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_text, "MAX_UNIT_TEXT_BYTES", 3500)
    for number in range(4):
        make_image(tmp_path / "videos" / f"{number}.png", size=(32, 32))
        (tmp_path / "videos" / f"{number}.txt").write_text("y" * 1000)
    recipe = dataclasses.replace(recipe, buckets=(Bucket(1, 32, 32),), micro_batch=(1,))
    run = dataclasses.replace(run, sources=(str(tmp_path / "videos"),))
    summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert summary.counts.samples == 3 and summary.counts.rejects == {"encode/too_much_text": 1}
    assert "--unit-clips" in str(summary)
    rows = assert_sound(Path(run.output))
    assert [row["caption"] is None for row in rows] == [False, False, False, True]

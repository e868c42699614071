"""A whole job from an S3 bucket to the same bucket, on a real server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import s3fs

from pipeline.loader import LatentDataset
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.clips_maker import make_clip
from tests.support.oracle import assert_sound


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for i in range(6):
        make_clip(tmp_path / "videos" / f"{i}.mp4", 40, seed=i)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    return tmp_path / "videos"


def test_from_s3_to_s3(s3: str, videos: Path, recipe: Recipe, run: Run, tiny_card: Card, tmp_path: Path) -> None:
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    fs.put(str(videos), f"{s3}/videos", recursive=True)
    run = dataclasses.replace(run, output=f"{s3}/out", sources=(f"{s3}/videos",))
    recipe = dataclasses.replace(recipe, windows="all", unit_clips=2)
    summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert (summary.counts.samples, summary.counts.rejects) == (12, {"probe/unknown_format": 1})
    assert encode(recipe, run, tiny_card, say=lambda line: None).units_done_now == 0
    fs.get(f"{s3}/out", str(tmp_path / "copy"), recursive=True)
    rows = assert_sound(tmp_path / "copy")
    assert "probe/unknown_format" in (tmp_path / "copy" / "report.html").read_text()
    assert {row["source"] for row in rows} == {f"{s3}/videos"}
    seen = [name for batch in LatentDataset(f"{s3}/out").batches(4) for name in batch["id"]]
    assert sorted(seen) == sorted(row["id"] for row in rows if row["shard"])

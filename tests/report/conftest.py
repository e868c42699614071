"""Outputs with everything that a report can show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs.report import main
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.report.pages import HOSTILE, SCRIPT, SECRET
from tests.support.clips_maker import make_clip, make_image
from tests.support.golden import TINY


@pytest.fixture(scope="session")
def encoded_output(tmp_path_factory: pytest.TempPathFactory, tiny_card: Card) -> Path:
    """Output of a job in a folder whose name is HTML: two buckets and images, skips, rejects, and hostile texts."""
    folder = tmp_path_factory.mktemp("page") / "<b>&\"' films"
    for seed in range(4):
        make_clip(folder / "videos" / f"wide{seed}.mp4", 40, seed=seed)
    make_clip(folder / "videos" / "square.mp4", 20, size=(64, 64))
    make_clip(folder / "videos" / "tiny.mp4", 20, size=(16, 16))
    make_image(folder / "videos" / "still.png")
    (folder / "videos" / "bad.mp4").write_text("not a video")
    rows = [{"path": "videos/wide0.mp4", "caption": SCRIPT}]
    rows += [{"path": text, "caption": text} for text in (SCRIPT, "k" * 10_000, *HOSTILE)]
    rows.append({"path": f"https://me:{SECRET}@127.0.0.1/a.mp4?X-Amz-Signature={SECRET}", "caption": "x"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    buckets = (Bucket(17, 32, 56), Bucket(17, 32, 32), Bucket(1, 32, 56))
    recipe = Recipe(vae=tiny_card.sha256, buckets=buckets, micro_batch=(1,) * 3, unit_clips=4, windows="all")
    sources = (f"films={folder / 'videos'}", str(folder / "list.jsonl"))
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=sources, local=True, cpus=2, max_rejects=1.0)
    encode(recipe, run, tiny_card, say=lambda line: None)
    return folder / "out"


@pytest.fixture
def output(encoded_output: Path, tmp_path: Path) -> Path:
    """A copy of the output that a test may change."""
    shutil.copytree(encoded_output, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def output_with_gallery(encoded_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same output with a gallery, made after one video was deleted."""
    folder = tmp_path_factory.mktemp("pictured")
    shutil.copytree(encoded_output, folder / "out")
    shutil.copytree(encoded_output.parent / "videos", folder / "videos", copy_function=shutil.copy2)
    (folder / "videos" / "square.mp4").unlink()
    source = f"films={folder / 'videos'}"
    assert main([str(folder / "out"), "--vae", str(TINY), "--source", source, "--cpus", "2", "--samples", "3"]) == 0
    return folder / "out"

"""Two jobs on one output at once. With the same recipe they share the work; with different recipes one is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.oracle import assert_sound, tree
from tests.support.painted import VARIABLE, assert_together, command, write_videos
from tests.support.paths import ROOT

NUM_UNITS = 30


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that are a unit each and take half a second in the VAE."""
    return write_videos(tmp_path_factory.mktemp("videos"), NUM_UNITS)


def start(videos: Path, output: Path, *more: str, slow: bool = True) -> subprocess.Popen[str]:
    deeds = dict.fromkeys(range(NUM_UNITS), "slow") if slow else {}
    return subprocess.Popen(
        command(videos, output, "--local", "--unit-clips", "1", "--max-rejects", "1", "--cpus", "1", *more),
        cwd=ROOT,
        env=os.environ | {VARIABLE: json.dumps(deeds)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_jobs_of_one_recipe_share_the_work(videos: Path, tmp_path: Path) -> None:
    jobs = [start(videos, tmp_path / "out") for _ in range(2)]
    for process in jobs:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert_together(assert_sound(tmp_path / "out"), tmp_path / "out")
    runs = [path.read_text().splitlines() for path in (tmp_path / "out" / "runs").iterdir()]
    encoded = [sum(json.loads(line)["outcome"] in ("committed", "lost") for line in run) for run in runs]
    assert len(encoded) == 2 and min(encoded) > NUM_UNITS // 4, "both jobs encode units"
    assert NUM_UNITS <= sum(encoded) <= NUM_UNITS * 1.2, "at most a fifth of the units is encoded twice"
    start(videos, tmp_path / "alone", slow=False).communicate(timeout=120)
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_when_two_recipes_begin_at_once_one_wins_and_the_other_is_refused_by_field(
    videos: Path, tmp_path: Path
) -> None:
    jobs = [start(videos, tmp_path / "out", "--store", store, slow=False) for store in ("moments", "mean")]
    said = [process.communicate(timeout=120)[0] for process in jobs]
    assert sorted(process.returncode for process in jobs) == [0, 2], said
    refused = said[[process.returncode for process in jobs].index(2)]
    assert "store: " in refused and " -> " in refused
    assert_sound(tmp_path / "out")

"""Real Ray: a local cluster that the job starts, and a job submitted to a head that is already running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.drivers.options import VARIABLE
from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.http_server import Reply, serving
from tests.support.oracle import assert_sound, tree
from tests.support.paths import ROOT
from tests.support.ray_head import ray_head


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_clip(folder / f"{i}.mp4", 40, seed=i)
    (folder / "bad.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module", autouse=True)
def private_tar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tar on a web server that wants a token. ``PRIVATE_TAR`` is its URL; a file that every node has holds the token."""
    folder = tmp_path_factory.mktemp("private")
    content = write_tar(
        folder / "a.tar", [("1.mp4", make_clip(folder / "1.mp4", 40, seed=9).read_bytes())]
    ).read_bytes()
    with serving(lambda path: Reply(content), token=lambda: "c4n4ry") as server, pytest.MonkeyPatch.context() as patch:
        options = {server.url: {"headers": {"Authorization": "Bearer c4n4ry"}}}
        (folder / "options.json").write_text(json.dumps(options))
        patch.setenv(VARIABLE, str(folder / "options.json"))
        patch.setenv("PRIVATE_TAR", f"{server.url}/a.tar")
        yield


@pytest.fixture(scope="module")
def in_process(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The promised files of the same job without Ray."""
    output = tmp_path_factory.mktemp("reference") / "out"
    subprocess.run([*command(videos, output), "--local"], check=True, stdout=subprocess.DEVNULL)
    return tree(output)


def command(videos: Path, output: Path) -> list[str]:
    arguments = [
        "--source",
        str(videos),
        "--source",
        os.environ["PRIVATE_TAR"],
        "--output",
        str(output),
        "--vae",
        str(TINY),
        "--buckets",
        "32x56x17",
    ]
    arguments += ["--windows", "all", "--unit-clips", "2", "--cpus", "2", "--max-rejects", "1"]
    return [sys.executable, str(ROOT / "jobs" / "encode_dataset.py"), *arguments]


def test_actors_write_the_same_bytes_as_one_process(videos: Path, tmp_path: Path, in_process: dict[str, str]) -> None:
    job = subprocess.run(command(videos, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "5/5 units" in job.stdout
    assert_sound(tmp_path / "out")
    assert tree(tmp_path / "out") == in_process


def test_ray_job_submit_runs_the_same_command(videos: Path, tmp_path: Path, in_process: dict[str, str]) -> None:
    """On a cluster without a token. ``test_submit.py`` has one with a token."""
    output = tmp_path / "out"
    with ray_head(tmp_path, "--num-cpus=2", RAY_AUTH_MODE="disabled") as head:
        entrypoint = ["python", "jobs/encode_dataset.py", *command(videos, output)[2:]]
        job = head.submit(*entrypoint, options=("--working-dir", str(ROOT)))
        assert head.wait(job) == "SUCCEEDED", head.log(job)
    assert json.loads((output / "summary.json").read_text())["exit_code"] == 0
    assert_sound(output)
    assert tree(output) == in_process

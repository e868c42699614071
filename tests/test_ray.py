"""Real Ray: a local cluster of the job's own, and a job submitted to a head that runs already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.clips_maker import make_clip
from tests.conftest import TINY
from tests.oracle import assert_sound, tree
from tests.ray_head import RAY, free_port, ray_head

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_clip(folder / f"{i}.mp4", 40, seed=i)
    (folder / "bad.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def in_process(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The promised files of the same job without Ray."""
    output = tmp_path_factory.mktemp("reference") / "out"
    subprocess.run([*command(videos, output), "--local"], check=True, stdout=subprocess.DEVNULL)
    return tree(output)


def command(videos: Path, output: Path) -> list[str]:
    arguments = ["--source", str(videos), "--output", str(output), "--codec", str(TINY), "--buckets", "32x56x17"]
    arguments += ["--windows", "all", "--unit-clips", "2", "--cpus", "2", "--max-rejects", "1"]
    return [sys.executable, str(ROOT / "jobs" / "encode_dataset.py"), *arguments]


def test_actors_write_the_same_bytes_as_one_process(videos: Path, tmp_path: Path, in_process: dict[str, str]) -> None:
    job = subprocess.run(command(videos, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "4/4 units" in job.stdout
    assert_sound(tmp_path / "out")
    assert tree(tmp_path / "out") == in_process


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """Address of the job server of a head node."""
    ports = [free_port() for _ in range(2)]
    address = f"http://127.0.0.1:{ports[1]}"

    def answers() -> bool:
        try:
            urlopen(f"{address}/api/jobs/", timeout=5).close()  # noqa: S310
        except (URLError, OSError):
            return False
        return True

    options = [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1"]
    with ray_head(tmp_path / "head.log", answers, *options):
        yield address


def test_ray_job_submit_runs_the_same_command(
    videos: Path, tmp_path: Path, head: str, in_process: dict[str, str]
) -> None:
    output = tmp_path / "out"
    entrypoint = ["python", "jobs/encode_dataset.py", *command(videos, output)[2:]]
    submit = [RAY, "job", "submit", "--address", head, "--working-dir", str(ROOT), "--", *entrypoint]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    deadline_s = time.monotonic() + 60
    while True:
        job = subprocess.run(submit, capture_output=True, text=True, check=False, env=environment, timeout=240)
        # the head answers a little before it has an agent to run jobs with
        if "No available agent" not in job.stderr or time.monotonic() > deadline_s:
            break
    assert job.returncode == 0, job.stdout[-5000:] + job.stderr[-5000:]
    assert json.loads((output / "summary.json").read_text())["exit_code"] == 0
    assert_sound(output)
    assert tree(output) == in_process

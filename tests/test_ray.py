"""Real Ray and a real codec: a job submitted to a head that runs already writes what one process writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.clips_maker import make_clip
from tests.conftest import TINY
from tests.oracle import assert_sound, tree
from tests.ray_head import ray_head

ROOT = Path(__file__).parents[1]


def test_ray_job_submit_runs_the_same_command(tmp_path: Path) -> None:
    """Without a token, on purpose; ``test_submit.py`` has a cluster that wants one."""
    for i in range(6):
        make_clip(tmp_path / "videos" / f"{i}.mp4", 40, seed=i)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    arguments = ["--source", str(tmp_path / "videos"), "--codec", str(TINY), "--buckets", "32x56x17"]
    arguments += ["--windows", "all", "--unit-clips", "2", "--cpus", "2", "--max-rejects", "1"]
    job = ["jobs/encode_dataset.py", *arguments, "--output"]
    in_process = [sys.executable, *job, str(tmp_path / "in-process"), "--local"]
    subprocess.run(in_process, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    output = tmp_path / "submitted"
    with ray_head(tmp_path, "--num-cpus=2", RAY_AUTH_MODE="disabled") as head:
        submitted = head.submit("python", *job, str(output), options=("--working-dir", str(ROOT)))
        assert head.wait(submitted) == "SUCCEEDED", head.log(submitted)
        assert "4/4 units" in head.log(submitted)
    assert json.loads((output / "summary.json").read_text())["exit_code"] == 0
    assert_sound(output)
    assert tree(output) == tree(tmp_path / "in-process")

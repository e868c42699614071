"""``--dry-run`` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.encode_dataset import main
from tests.support.clips_maker import make_clip, numbered_frame
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT


def test_the_command_needs_no_torch_until_it_measures(dataset: Path, tmp_path: Path) -> None:
    arguments = ["--source", str(dataset / "f"), "--output", str(tmp_path / "out"), "--vae", str(TINY)]
    arguments += ["--buckets", "32x32x17,32x56x17", "--cpus", "2", "--dry-run"]
    code = f"import sys; from jobs.encode_dataset import main; code = main({arguments}); " + (
        "print([m for m in ('torch', 'ray', 'av') if m in sys.modules]); sys.exit(code)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0 and shown.stdout.endswith("[]\n"), shown.stdout + shown.stderr
    assert (
        "items    6, all probed" in shown.stdout and "give the speed of an encoder with --clips-per-s" in shown.stdout
    )
    assert not (tmp_path / "out").exists()


def test_the_time_comes_from_a_given_or_a_measured_speed(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--source", str(dataset / "f"), "--output", str(tmp_path / "out"), "--vae", str(TINY), "--local"]
    arguments += ["--buckets", "32x32x17,32x56x17", "--cpus", "2", "--windows", "all", "--dry-run", "all"]
    assert main([*arguments, "--clips-per-s", "0.01", "--gpus", "0.5", "--actors", "2"]) == 0
    output = capsys.readouterr().out
    assert (
        "encoding 0.097 GPU-hours, 5.8 min on 2 encoders, at the speed given; decoding is not included" in output
    )  # 7 clips of 100 s, half a GPU
    assert main([*arguments, "--calibrate"]) == 0
    output = capsys.readouterr().out
    assert "32x32x17: 1 at once" in output and "as just measured on this CPU" in output
    assert main([*arguments, "--clips-per-s", "1,2,3"]) == 2
    assert "one for each of 2 buckets" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_scenes_are_counted_as_the_job_finds_them(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("scenedetect")
    colors = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    lengths = (40, 10, 40)
    moving = [numbered_frame(i, 64, 112) // 4 for i in range(max(lengths))]
    frames = [
        (moving[i] + np.array(color) // 2).astype(np.uint8)
        for color, length in zip(colors, lengths, strict=True)
        for i in range(length)
    ]
    make_clip(tmp_path / "videos" / "cuts.mp4", frames=frames)
    output = tmp_path / "out"
    arguments = ["--source", str(tmp_path / "videos"), "--output", str(output), "--vae", str(TINY), "--local"]
    arguments += ["--buckets", "32x56x17", "--windows", "all", "--scenes", "content", "--cpus", "1"]
    assert main([*arguments, "--dry-run", "--clips-per-s", "1"]) == 0
    shown = capsys.readouterr().out
    assert "scenes   3" in shown and "lost to cuts; detection takes" in shown and "cut" in shown
    assert main(arguments) == 0
    rows = assert_sound(output)
    placed = [
        (r["scene"], r["skip_reason"] or round(r["start_s"] * 24)) for r in sorted(rows, key=lambda r: r["window"])
    ]
    assert placed == [(0, 0), (0, 17), (0, "remainder"), (1, "cut"), (2, 50), (2, 67), (2, "remainder")]
    assert {(r["scene"], r["scene_start_s"], r["scene_end_s"]) for r in rows} == {
        (0, 0.0, 40 / 24),
        (1, 40 / 24, 50 / 24),
        (2, 50 / 24, 90 / 24),
    }
    recipe = json.loads((output / "dataset.json").read_text())["recipe"]
    assert (recipe["scenes"], recipe["scene_threshold"]) == ("content", 27.0)
    assert recipe["scene_detector"].startswith("scenedetect-headless ")
    assert main([*arguments, "--scene-threshold", "30"]) == 2
    assert "scene_threshold: 27.0 -> 30.0" in capsys.readouterr().out

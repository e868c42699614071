"""``--dry-run`` on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.encode_dataset import main
from tests.support.golden import TINY
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

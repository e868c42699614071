"""A text job on Ray: any number of actors gives the bytes of a job in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.oracle import tree
from tests.support.paths import ROOT


@pytest.mark.long
def test_two_actors_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    flags = ["--encoder", "demo", "--layer", "t5", "--captions", "caption", "--cpus", "1", "--unit-strings", "4"]
    trees = []
    for name, run in (("local", ["--local"]), ("ray", ["--actors", "2", "--gpus", "0"])):
        add_unit(tmp_path / name, [Captions(f"caption of number {n % 13}" * (n % 3 + 1)) for n in range(40)])
        finish(tmp_path / name)
        command = [sys.executable, "jobs/encode_text.py", str(tmp_path / name), *flags, *run]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "finished" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
        trees.append(tree(tmp_path / name / "layers" / "t5"))
    assert trees[0] == trees[1] and len([path for path in trees[0] if path.startswith("shards/")]) >= 9

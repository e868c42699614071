"""Transformers with cross-attention train from the latents and texts of the loader, in processes without `transformers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.encode_text import main as encode_text
from tests.support.captioned_set import VIDEO_BUCKET, Captions, add_unit, finish
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "out"
    add_unit(folder, [Captions(caption=f"a dog, take {n}{', again' * (n % 3)}", bucket=VIDEO_BUCKET) for n in range(8)])
    finish(folder)
    flags = ["--encoder", "demo", "--layer", "t5", "--captions", "caption", "--local", "--cpus", "1"]
    assert encode_text([str(folder), *flags]) == 0
    return folder


def test_losses_fall_without_a_text_encoder_in_memory(output: Path) -> None:
    """A Wan transformer of diffusers, and a model with Open-Sora's text handling, whose null is in its own weights."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.loader.train_with_text", str(output)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name, losses in json.loads(done.stdout).items():
        assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0], name

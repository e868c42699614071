"""Runs `make demo`: real clips and captions are encoded, read back as a batch and shown in a picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.loader.text.open_layer import open_layer
from pipeline.storage.store import Store
from stvae import read_card
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT


def test_the_demo_encodes_its_clips_and_shows_them_decoded(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "demo.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "UserWarning" not in shown.stderr
    rows = assert_sound(tmp_path / "demo-out" / "latents")
    assert {row["key"] for row in rows if row["shard"]} == {"big_buck_bunny.mp4", "city.mpg"}
    assert not [row for row in rows if row["reject_reason"]]
    assert re.search(r"normalized latents of shape \(2, 4, 5, 16, 28\),\n  embeddings .* \(2, \d\d, 32\)", shown.stdout)
    layer = open_layer(Store(str(tmp_path / "demo-out" / "latents")), "t5", pa.chunked_array([["none"]]))
    assert len(layer.shard_codes) == 3, "two captions and the empty one"
    last_line = shown.stdout.strip().splitlines()[-1]
    with Image.open(last_line.rpartition(": ")[2]) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    assert pixels.shape[1] >= 6 * 224
    source, decoded = pixels[22 : 22 + 128, :1344], pixels[22 + 128 : 22 + 256, :1344]
    assert np.corrcoef(source.ravel(), decoded.ravel())[0, 1] > 0.5, "the decoded row shows the same as the source row"


def test_the_demo_vae_is_small() -> None:
    folder = ROOT / "stvae" / "demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    card = read_card("demo")
    assert card.latent_channels == 4 and card.geometry.latent_size((17, 128, 224)) == (5, 16, 28)

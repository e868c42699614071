"""Outputs that several devices have encoded: refused unless the user allows it, and counted by device."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline.bucket import Bucket
from pipeline.environment import cpu_model
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.report.pages import page_of, text_of
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.painted import SIZE, painted, write_video, write_videos

GPU = "cuda NVIDIA Made-Up 9000"


def test_a_job_on_another_kind_of_device_is_refused_or_counted(tmp_path: Path, tiny_card: Card) -> None:
    videos = write_videos(tmp_path / "videos", 4)
    output = tmp_path / "out"
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=2)
    run = Run(output=str(output), vae=str(TINY), sources=(str(videos),), local=True, cpus=1)
    with painted():
        summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert summary.devices == {cpu_model(): 4} and not [line for line in summary.lines() if "samples on" in line]
    index = json.loads((output / "index" / "0000.json").read_text())
    assert "samples_elsewhere" not in index["totals"], "earlier versions read this index too"
    assert f"{cpu_model()} 4" in text_of(page_of(output))

    dataset = json.loads((output / "dataset.json").read_text())
    dataset["environment"]["device"] = GPU
    (output / "dataset.json").write_text(json.dumps(dataset))
    for number in range(3):
        write_video(videos / f"later{number}.mp4", number + 9, num_frames=17)
    with (
        painted(),
        pytest.raises(ConfigError, match=rf"begun on '{GPU}'.*on CPUs.*give --gpus 1; .*--allow-other-device"),
    ):
        encode(recipe, run, tiny_card, say=lambda line: None)
    with painted():
        summary = encode(recipe, dataclasses.replace(run, allow_other_device=True), tiny_card, say=lambda line: None)
    assert summary.devices == {GPU: 4, cpu_model(): 3}
    assert json.loads((output / "summary.json").read_text())["devices"] == summary.devices
    assert f"  device          3  samples on {cpu_model()}" in summary.lines()
    assert_sound(output)

    text = text_of(page_of(output))
    assert f"{GPU} 4" in text and f"{cpu_model()} 3" in text and f"Clips by device: {GPU}: 4, {cpu_model()}: 3." in text
    shutil.rmtree(output / "index")
    assert f"Clips by device: {GPU}: 4, {cpu_model()}: 3." in text_of(page_of(output)), "without an index"


def test_a_finished_output_is_not_refused_on_another_device(tmp_path: Path, tiny_card: Card) -> None:
    """There is nothing to encode, so no device is looked for."""
    videos = write_videos(tmp_path / "videos", 1)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,))
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(videos),), local=True)
    with painted():
        encode(recipe, run, tiny_card, say=lambda line: None)
    assert encode(recipe, dataclasses.replace(run, gpus=1.0), tiny_card, say=lambda line: None).units_done_now == 0

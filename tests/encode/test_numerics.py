"""The numerics of an encoder's process: set while it encodes, restored afterwards, and recorded in the output."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.environment import describe_environment, is_same_environment
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card
from tests.support.golden import TINY
from tests.support.painted import SIZE, PaintedVAE, painted, write_video, write_videos

Flags = tuple[object, ...]


def flags() -> Flags:
    backends = torch.backends
    return (
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
    )


@pytest.fixture
def job(tmp_path: Path, tiny_card: Card) -> tuple[Recipe, Run]:
    videos = write_videos(tmp_path / "videos", 4)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=2)
    return recipe, Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(videos),), local=True, cpus=1)


def recorded(run: Run) -> dict[str, str]:
    environment: dict[str, str] = json.loads((Path(run.output) / "dataset.json").read_text())["environment"]
    return environment


@pytest.mark.parametrize("autotune", [False, True])
def test_an_encoder_computes_with_fixed_numerics_and_the_output_records_them(
    job: tuple[Recipe, Run], tiny_card: Card, autotune: bool
) -> None:
    recipe, run = job
    seen: list[Flags] = []
    encode_painted = PaintedVAE.encode

    def record(self: PaintedVAE, pixels: Any, **options: Any) -> Any:
        seen.append(flags())
        return encode_painted(self, pixels, **options)

    before = flags()
    with painted(), mock.patch.object(PaintedVAE, "encode", record):
        encode(recipe, dataclasses.replace(run, autotune=autotune), tiny_card, say=lambda line: None)
    assert seen == [(False, False, True, autotune)] * 4
    assert flags() == before
    environment = recorded(run)
    assert (environment["float32"], environment["cudnn"]) == ("ieee", "deterministic")
    assert environment["autotune"] == ("on" if autotune else "off")


def test_numerics_come_back_after_a_failed_job(job: tuple[Recipe, Run], tiny_card: Card) -> None:
    recipe, run = job
    before = flags()
    failure = mock.patch.object(PaintedVAE, "encode", side_effect=RuntimeError("the VAE failed"))
    with painted(), failure, pytest.raises(RuntimeError, match="the VAE failed"):
        encode(recipe, run, tiny_card, say=lambda line: None)
    assert flags() == before


def test_units_that_were_autotuned_are_noted_like_those_of_another_device(
    job: tuple[Recipe, Run], tiny_card: Card
) -> None:
    recipe, run = job
    with painted():
        encode(recipe, run, tiny_card, say=lambda line: None)
        write_video(Path(run.sources[0]) / "later.mp4", 9, num_frames=17)
        encode(recipe, dataclasses.replace(run, autotune=True), tiny_card, say=lambda line: None)
    noted = []
    for path in sorted(Path(run.output).glob("metadata/*.parquet")):
        facts = pq.read_schema(path).metadata
        noted += [json.loads(facts[b"environment"])["autotune"]] if b"environment" in facts else []
    assert noted == ["on"], "only the unit of the second job"


def test_an_environment_of_the_first_version_says_nothing_of_numerics() -> None:
    run = Run(output="", vae="", sources=(), cpus=1)
    for device, same in (("cpu A", True), ("cuda B", False)):
        environment = describe_environment(run, device)
        earlier = {name: value for name, value in environment.items() if name not in ("float32", "cudnn", "autotune")}
        assert is_same_environment(environment, environment)
        assert is_same_environment(earlier, environment) is same, device
        assert not is_same_environment(earlier | {"threads": "2"}, environment)

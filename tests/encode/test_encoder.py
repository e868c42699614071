"""The encoder: lack of memory, conditioning frames, settings that are resolved at the start, failing GPUs and disks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.encode_dataset import main
from pipeline.bucket import Bucket
from pipeline.encode import encoder as encode_module
from pipeline.encode import shard_attempt
from pipeline.encode.counters import EncoderCounters
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.errors import ConfigError
from pipeline.executor.ray_actor import EncoderActor
from pipeline.executor.tasks import Task, pack
from pipeline.loader import LatentDataset
from pipeline.output.dataset import read_dataset
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.store import Store
from stvae import Card, load_vae, read_card
from stvae.vae import VAE
from tests.support import tiny_vaes
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.painted import SIZE, VARIABLE, assert_together, painted, write_video
from tests.support.painted import command as painted_command
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        make_clip(folder / f"{seed}.mp4", 20, size=(64, 64), seed=seed)
    return folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vaes.save("AutoencoderKLWan", tmp_path_factory.mktemp("wan"))


def job(folder: Path, videos: Path, output: Path, **settings: Any) -> tuple[Recipe, Run, Card]:
    card = read_card(str(folder))
    recipe = Recipe(vae=card.sha256, buckets=(Bucket(17, 64, 64),), **{"micro_batch": (2,)} | settings)
    run = Run(output=str(output), vae=str(folder), sources=(str(videos),), local=True, cpus=2, max_rejects=1.0)
    return recipe, run, card


class SmallMemory(VAE):
    """A VAE whose device fits ``clips`` clips at once, and any number in tiles if it ``tiles``."""

    clips = 1
    tiles = True

    def encode(self, pixels_BCTHW: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(pixels_BCTHW) > self.clips and not (options.get("tiled") and self.tiles):
            raise torch.OutOfMemoryError("no memory left")
        return super().encode(pixels_BCTHW, **options)


@pytest.mark.parametrize(
    ("clips", "tiles", "expected"), [(2, True, "whole"), (1, True, "single"), (0, True, "tiled"), (0, False, None)]
)
def test_when_memory_runs_out_fewer_clips_then_tiles_then_a_reject(
    clips: int, tiles: bool, expected: str | None, wan: Path, videos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def load(vae: str, **options: Any) -> VAE:
        whole = load_vae(vae, **options)
        small = SmallMemory(whole.card, whole.model)
        small.clips, small.tiles = clips, tiles
        return small

    monkeypatch.setattr(encode_module, "load_vae", load)
    summary = encode(*job(wan, videos, tmp_path / "out"), say=lambda line: None)
    rows = assert_sound(tmp_path / "out")
    assert {row["encode_path"] for row in rows} == {expected}
    if expected is None:
        assert summary.counts.rejects == {"encode/memory": 3} and "64x64x17" in rows[0]["reject_message"]


def test_shortened_clips_do_not_mix_with_those_of_a_bucket_with_another_micro_batch(
    tmp_path: Path, tiny_card: Card
) -> None:
    """A clip of the long bucket may be shortened to the size of the short one."""
    for number, num_frames in enumerate([17, 17, 51, 17]):
        write_video(tmp_path / "videos" / f"{number}.mp4", number, num_frames)
    recipe = Recipe(
        vae=tiny_card.sha256,
        buckets=(Bucket(17, *SIZE), Bucket(34, *SIZE)),
        micro_batch=(3, 2),
        windows="all",
        remainder="shorten",
    )
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(tmp_path / "videos"),), local=True, cpus=1)
    with painted():
        encode(recipe, run, tiny_card, say=lambda line: None)
    rows = assert_sound(tmp_path / "out")
    assert_together(rows, tmp_path / "out")
    clips = sorted((row["key"], row["num_frames"]) for row in rows)
    assert clips == [("0.mp4", 17), ("1.mp4", 17), ("2.mp4", 17), ("2.mp4", 34), ("3.mp4", 17)]


def test_an_error_that_is_not_memory_stops_the_job(wan: Path, videos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(VAE, "encode", fail)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        encode(*job(wan, videos, tmp_path / "out"), say=lambda line: None)


def test_first_and_last_frames_are_encoded_alone(wan: Path, videos: Path, tmp_path: Path) -> None:
    recipe, run, card = job(wan, videos, tmp_path / "out", conditioning="first-last", dtype="float32")
    encode(recipe, run, card, say=lambda line: None)
    rows = assert_sound(tmp_path / "out")
    assert all(row["first_offset"] and row["last_offset"] for row in rows)
    data = LatentDataset(str(tmp_path / "out"))
    (batch,) = list(data.batches(3, conditioning=True, normalized=False))
    assert batch["first_latents"].shape == batch["last_latents"].shape == (3, 16, 1, 8, 8)
    assert not torch.equal(batch["first_latents"], batch["last_latents"])
    vae = load_vae(wan, only="encoder")
    import av

    with av.open(str(videos / f"{Path(batch['key'][0]).stem}.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for name, frame in (("first", frames[0]), ("last", frames[16])):
        pixels = torch.from_numpy(np.stack([frame])).permute(3, 0, 1, 2)[None]
        expected = vae.encode(torch.cat([pixels, pixels]))[:1, :16]  # a micro-batch of the recipe's size
        torch.testing.assert_close(batch[f"{name}_latents"][:1], expected)
    (normalized,) = list(data.batches(3, conditioning=True))
    torch.testing.assert_close(normalized["first_latents"], vae.normalize(batch["first_latents"]))


def test_an_output_without_conditioning_frames_says_so(wan: Path, videos: Path, tmp_path: Path) -> None:
    encode(*job(wan, videos, tmp_path / "out"), say=lambda line: None)
    with pytest.raises(ConfigError, match="--conditioning"):
        LatentDataset(str(tmp_path / "out")).batches(1, conditioning=True)


def test_settings_that_the_vae_does_not_support_are_refused(tmp_path: Path, wan: Path, videos: Path) -> None:
    allegro = tiny_vaes.save("AutoencoderKLAllegro", tmp_path / "allegro")
    recipe, run, card = job(allegro, videos, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"frames must be 24 \+ 16n, got 17; the nearest that fits is 24"):
        encode(recipe, run, card, say=lambda line: None)
    fitting = dataclasses.replace(recipe, buckets=(Bucket(24, 128, 128),), conditioning="first")
    with pytest.raises(ConfigError, match=r"cannot encode the member 'first' of bucket 128x128x24: frames must"):
        encode(fitting, run, card, say=lambda line: None)
    recipe, run, card = job(wan, videos, tmp_path / "out", spatial_posterior="sample")
    with pytest.raises(ConfigError, match="Open-Sora"):
        encode(recipe, run, card, say=lambda line: None)


def test_auto_becomes_a_type_once_and_is_recorded(videos: Path, tmp_path: Path) -> None:
    recipe, run, card = job(TINY, videos, tmp_path / "out", compute_dtype="auto")
    encode(recipe, run, card, say=lambda line: None)
    assert read_dataset(Store(run.output)).recipe.compute_dtype == "float32"
    begun_on_gpus = dataclasses.replace(recipe, compute_dtype="bfloat16")
    other = dataclasses.replace(run, output=str(tmp_path / "other"))
    encode(begun_on_gpus, other, card, say=lambda line: None)
    lines: list[str] = []
    encode(recipe, other, card, say=lines.append)
    assert "nothing to do" in lines[0]


def test_calibrate_proposes_and_writes_nothing(videos: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--source", str(videos), "--output", str(tmp_path / "out"), "--vae", str(TINY), "--local"]
    assert main([*arguments, "--buckets", "16x16x17,16x32x1", "--cpus", "2", "--calibrate"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"propose: --micro-batch \d+,\d+  \(float32, VideoAutoencoderPipeline\)", said)
    assert "clips/s" in said and not (tmp_path / "out").exists()


def test_latents_that_cannot_be_stored_are_rejects_and_never_zeroed_or_clipped(
    tmp_path: Path, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeds = {2: "nan", 3: "inf", 4: "huge"}
    monkeypatch.setenv(VARIABLE, json.dumps(deeds))
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    bucket = (Bucket(17, *SIZE),)
    run = Run(output="", vae=str(TINY), sources=(str(tmp_path / "videos"),), local=True, cpus=1, max_rejects=1.0)
    for dtype, expected in (
        ("float16", {2: "nonfinite", 3: "nonfinite", 4: "out_of_range"}),
        ("float32", {2: "nonfinite", 3: "nonfinite"}),
    ):
        recipe = Recipe(vae=tiny_card.sha256, buckets=bucket, micro_batch=(2,), dtype=dtype)  # type: ignore[arg-type]
        with painted():
            encode(recipe, dataclasses.replace(run, output=str(tmp_path / dtype)), tiny_card, say=lambda line: None)
        rows = assert_sound(tmp_path / dtype)
        assert {int(row["key"][0]): row["reject_reason"] for row in rows if row["reject_reason"]} == expected
        assert len([row for row in rows if row["shard"]]) == 6 - len(expected)
    assert_together(assert_sound(tmp_path / "float16"), tmp_path / "float16")


def test_a_full_disk_ends_the_job_with_a_sentence_and_it_can_go_on(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    more = ["--local", "--windows", "all", "--unit-clips", "6", "--cpus", "1"]
    command = painted_command(tmp_path / "videos", tmp_path / "out", *more)

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # smaller than the tar

    full = subprocess.run(command, cwd=ROOT, preexec_fn=limit_file_size, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full.stderr
    assert re.search(
        r"error: \S+/out/\.partial/\S+ cannot be written: File too large \(\d+ bytes are free\)", full.stdout
    )
    assert not list((tmp_path / "out").glob(".partial/*")) and not (tmp_path / "out" / "metadata").exists()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    assert_together(assert_sound(tmp_path / "out"), tmp_path / "out")


def test_a_failed_gpu_ends_the_process_so_that_ray_starts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        counters = EncoderCounters("encoder")

        def encode_unit(self, unit: Unit, ignored_attempts: list[str]) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    monkeypatch.setattr("pipeline.executor.ray_actor.EVERY_S", 1e6)  # no heartbeat during the test
    task = Task(Unit(name="u", source="s", format="tar", generation=0, start=0, stop=None))
    maker = EncoderMaker(run=Run(output="", vae="", sources=()), job="job", make=Encoder)  # type: ignore[arg-type]
    with pytest.raises(torch.AcceleratorError):  # the test keeps the signal from ending this process
        list(EncoderActor(maker)({"tasks": [pack([task])]}))
    assert signals == [signal.SIGKILL]


def test_ranges_of_one_file_are_fetched_once_and_each_is_an_item(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(tmp_path / "v" / "long.mp4", 120, size=(64, 64))
    make_clip(tmp_path / "v" / "other.mp4", 20, size=(64, 64))
    ranges = [("long", 80, 100), ("other", 0, None), ("long", 0, 20), ("long", 200, 300), ("long", 85, 120)]
    manifest = tmp_path / "v" / "rows.jsonl"
    manifest.write_text(
        "".join(json.dumps({"path": f"{name}.mp4", "n": n}) + "\n" for n, (name, *_) in enumerate(ranges))
    )
    read_items, fetch, fetched = shard_attempt.items, shard_attempt.fetch, []

    def with_ranges(*arguments: Any) -> Iterator[Item]:
        for item in read_items(*arguments):
            yield dataclasses.replace(item, range=ranges[item.ordinal][1:])

    def counted(item: Item, recipe: Recipe) -> int:
        fetched.append(item.ordinal)
        return fetch(item, recipe)

    monkeypatch.setattr(shard_attempt, "items", with_ranges)
    monkeypatch.setattr(shard_attempt, "fetch", counted)
    recipe, run, card = job(wan, manifest, tmp_path / "out", range_unit="frames", windows="all")
    summary = encode(recipe, run, card, say=lambda line: None)
    assert sorted(fetched) == [0, 1]
    rows = assert_sound(tmp_path / "out")
    clips = {(row["ordinal"], row["window"]): round(row["start_s"] * 24) for row in rows if row["shard"]}
    assert clips == {(0, 0): 80, (1, 0): 0, (2, 0): 0, (4, 0): 85, (4, 1): 102}
    assert summary.counts.rejects == {"probe/bad_range": 1}
    columns = [(row["range_start_s"], row["range_end_s"]) for row in rows if row["window"] == 0]
    assert columns[0] == (80 / 24, 100 / 24) and columns[1] == (0.0, 20 / 24) and columns[2] == (0.0, 20 / 24)
    again = encode(recipe, dataclasses.replace(run, retry_rejects="bad_range"), card, say=lambda line: None)
    assert again.counts.rejects == {"probe/bad_range": 1} and len(fetched) == 3 and fetched[-1] == 3
    assert_sound(tmp_path / "out")

"""Whole jobs on real clips, in this process and through the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset as wds

from jobs.encode_dataset import main
from pipeline.bucket import Bucket
from pipeline.encode.encoder import ShardEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.errors import ConfigError, Rejected, SourceChanged
from pipeline.loader import LatentDataset
from pipeline.output.serialization import pack_latent
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.report.round_trip import source_frames
from pipeline.run import encode
from stvae import Card, load_vae
from tests.support.clips_maker import make_clip, make_image, package_clip
from tests.support.golden import TINY
from tests.support.oracle import assert_sound, tree
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good videos of two shapes, two that fit no bucket, a picture and three broken files. Some have captions."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        make_clip(folder / f"wide{i}.mp4", 40, size=(64, 112), seed=i)
        (folder / f"wide{i}.txt").write_text(f"caption {i}")
    for i in range(3):
        make_clip(folder / f"square{i}.mkv", 36, size=(64, 64), seed=i)
    make_clip(folder / "short.mp4", 9)
    make_clip(folder / "tiny.mp4", 40, size=(16, 16))
    make_image(folder / "picture.png")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video")
    whole = (folder / "wide0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def job(videos: Path | str, recipe: Recipe, run: Run, card: Card, **changes: Any) -> Summary:
    recipe = dataclasses.replace(recipe, **changes)
    return encode(recipe, dataclasses.replace(run, sources=(str(videos),)), card, say=lambda line: None)


def test_every_window_of_every_file_ends_as_one_sample_skip_or_reject(
    videos: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    summary = job(videos, recipe, run, tiny_card, windows="all")
    rows = assert_sound(Path(run.output))
    outcome = {(row["key"], row["window"]): row["skip_reason"] or row["reject_reason"] or row["bucket"] for row in rows}
    expected = {(f"wide{i}.mp4", w): "32x56x17" for i in range(4) for w in range(2)}
    expected |= {(f"square{i}.mkv", w): "32x32x17" for i in range(3) for w in range(2)}
    expected |= {(f"wide{i}.mp4", 2): "remainder" for i in range(4)} | {
        (f"square{i}.mkv", 2): "remainder" for i in range(3)
    }
    expected |= {("short.mp4", 0): "too_short", ("tiny.mp4", 0): "too_small", ("picture.png", 0): "too_short"}
    expected |= {("empty.mp4", 0): "empty", ("text.mp4", 0): "unknown_format", ("cut.mp4", 0): "damaged_container"}
    assert outcome == expected
    assert {row["caption"] for row in rows if row["key"].startswith("wide")} == {f"caption {i}" for i in range(4)}
    counts = summary.counts
    assert (counts.samples, counts.skips.total(), counts.rejects.total()) == (14, 10, 3)
    assert summary.exit_code == 0 and json.loads((Path(run.output) / "summary.json").read_text())["samples"] == 14


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_stored_latents_are_what_the_vae_gives_for_the_same_frames(
    videos: Path, recipe: Recipe, run: Run, tiny_card: Card, micro_batch: int
) -> None:
    job(videos, recipe, run, tiny_card, windows="all", micro_batch=(micro_batch,) * 2)
    assert_sound(Path(run.output))
    data = LatentDataset(run.output)
    vae = load_vae(TINY)
    rows = list(range(len(data)))
    assert len(rows) == 14
    stored = data.read(np.array(rows), "sample")
    for moments, frames in zip(stored, source_frames(run, data, rows), strict=True):
        direct = vae.encode(torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None])[0]
        assert np.abs(moments.astype(np.float32) - direct.numpy()).max() <= 4e-3  # float16 at values up to 8


def test_a_finished_or_refused_job_needs_no_gpu(videos: Path, recipe: Recipe, run: Run, tiny_card: Card) -> None:
    job(videos, recipe, run, tiny_card)
    with_gpu = dataclasses.replace(run, gpus=1.0)
    with mock.patch("pipeline.executor.ray_cluster.gpu_model", side_effect=AssertionError("a GPU was requested")):
        assert job(videos, recipe, with_gpu, tiny_card).units_done_now == 0
        with pytest.raises(ConfigError, match="store: moments -> mean"):
            job(videos, recipe, with_gpu, tiny_card, store="mean")


def test_a_second_run_does_nothing_and_says_so(videos: Path, recipe: Recipe, run: Run, tiny_card: Card) -> None:
    job(videos, recipe, run, tiny_card)
    before = tree(Path(run.output))
    said: list[str] = []
    summary = encode(recipe, dataclasses.replace(run, sources=(str(videos),)), tiny_card, say=said.append)
    assert said == ["4 units planned, 4 committed, nothing to do"]
    assert summary.units_done_now == 0 and tree(Path(run.output)) == before


def command(videos: Path, output: Path, *more: str) -> list[str]:
    arguments = ["--local", "--source", str(videos), "--output", str(output), "--vae", str(TINY)]
    arguments += ["--buckets", "32x32x17,32x56x17", "--unit-clips", "4", "--cpus", "2", "--max-rejects", "1", *more]
    return [sys.executable, str(ROOT / "jobs" / "encode_dataset.py"), *arguments]


def test_a_job_killed_half_way_resumes_to_the_same_bytes(
    videos: Path, recipe: Recipe, run: Run, tiny_card: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(videos, killed), stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 120
    while not list(killed.glob("metadata/*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    committed = len(list(killed.glob("metadata/*.parquet")))
    assert 1 <= committed < 4 and not list(killed.glob("index/*.json"))
    assert main(command(videos, killed)[2:]) == 0
    assert f"4 units planned, {committed} committed, {4 - committed} to do" in capsys.readouterr().out
    assert_sound(killed)
    job(videos, recipe, run, tiny_card)
    assert tree(killed) == tree(Path(run.output))


def test_another_recipe_is_refused_by_field_before_any_model_is_loaded(
    videos: Path, recipe: Recipe, run: Run, tiny_card: Card, tmp_path: Path
) -> None:
    job(videos, recipe, run, tiny_card)
    before = tree(Path(run.output))
    refused = subprocess.run(
        [*command(videos, Path(run.output)), "--fps", "12", "--windows", "all"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "fps: None -> 12.0" in refused.stdout and "windows: first -> all" in refused.stdout
    assert tree(Path(run.output)) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--buckets", "30x32x17"], "nearest that fits is 32"),
        (["--buckets", "wide"], "not HEIGHTxWIDTHxFRAMES"),
        (["--vae", "/nowhere"], "no VAE at"),
        (["--source", "/nowhere"], "/nowhere"),
        (["--windows", "stride"], "--stride-frames"),
        (["--fps", "fast"], "--fps: expected a number or 'native'"),
    ],
)
def test_wrong_arguments_end_with_exit_2_and_a_sentence(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(videos, tmp_path / "out", *more)[2:]) == 2
    assert message in capsys.readouterr().out
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_the_readmes_webdataset_recipe_reads_the_shards(
    videos: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    job(videos, recipe, run, tiny_card)
    output = Path(run.output)
    index = json.loads((output / "index" / "0000.json").read_text())
    shards = [str(output / line) for line in (output / index["shards"]).read_text().split()]
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode(only=["latent.npy", "json"]))
    assert len(samples) == 7
    for sample in samples:
        assert sample["latent.npy"].dtype == np.float16 and sample["latent.npy"].shape[:2] == (8, 5)
        normalization = sample["json"]["normalization"]
        assert normalization["formula"] == "(raw - shift) * scale"
        assert normalization["shift"] == list(tiny_card.shift) and normalization["scale"] == list(tiny_card.scale)
    assert sorted(s["json"]["key"] for s in samples)[-1] == "wide3.mp4"


def test_too_many_rejects_end_with_exit_3(tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for i in range(900):
        (folder / f"{i:03d}.mp4").write_bytes(b"")
    run = dataclasses.replace(run, max_rejects=0.05)
    summary = job(folder, recipe, run, tiny_card, unit_clips=20)
    assert summary.exit_code == 3 and not summary.finished
    assert 200 <= summary.counts.windows < 900
    again = job(folder, recipe, dataclasses.replace(run, max_rejects=1.0), tiny_card, unit_clips=20)
    assert again.exit_code == 0 and again.counts.rejects == {"probe/empty": 900}
    assert_sound(Path(run.output))


def test_a_small_job_whose_items_are_all_rejected_ends_with_exit_3(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "0.mp4").write_bytes(b"")
    run = dataclasses.replace(run, max_rejects=0.05)
    summary = job(folder, recipe, run, tiny_card)
    assert summary.exit_code == 3 and "every window was rejected" in str(summary) and "  finished" not in str(summary)
    assert job(folder, recipe, run, tiny_card).exit_code == 3, "the same command must end in the same way"
    make_clip(folder / "1.mp4", 20)
    assert job(folder, recipe, run, tiny_card).exit_code == 0
    assert_sound(Path(run.output))


def test_an_output_grows_with_its_input(tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card) -> None:
    folder = tmp_path / "videos"
    make_clip(folder / "b.mp4", 20)
    job(folder, recipe, run, tiny_card)
    before = tree(Path(run.output))
    make_clip(folder / "a.mp4", 20, seed=1)
    summary = job(folder, recipe, run, tiny_card)
    after = tree(Path(run.output))
    assert before.items() <= after.items()
    assert summary.counts.samples == 2 and (Path(run.output) / "index" / "0001.json").exists()
    assert_sound(Path(run.output))
    make_clip(folder / "a.mp4", 24, seed=2)
    with pytest.raises(SourceChanged, match=r"a\.mp4"):
        job(folder, recipe, run, tiny_card)


@pytest.mark.parametrize(("store", "dtype"), [("mean", "float16"), ("moments", "bfloat16"), ("moments", "float32")])
def test_other_contents_and_types_of_members(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card, store: Any, dtype: Any
) -> None:
    make_clip(tmp_path / "videos" / "a.mp4", 20)
    job(tmp_path / "videos", recipe, run, tiny_card, store=store, dtype=dtype)
    (row,) = assert_sound(Path(run.output))
    exact = tmp_path / "exact"
    job(tmp_path / "videos", recipe, dataclasses.replace(run, output=str(exact)), tiny_card, dtype="float32")
    (reference,) = LatentDataset(str(exact)).read(np.array([0]), "mean")
    (mean,) = LatentDataset(run.output).read(np.array([0]), "mean")
    assert np.abs(mean.astype(np.float32) - reference).max() <= {"bfloat16": 0.04, "float16": 4e-3, "float32": 0}[dtype]
    if dtype != "float16":
        data = (Path(run.output) / row["shard"]).read_bytes()
        tensors = safetensors.torch.load(data[row["offset"] : row["offset"] + row["nbytes"]])
        assert tensors["latent"].dtype == getattr(torch, dtype) and tensors["latent"].shape[0] == 8
        assert (row["tensor_offset"] - row["offset"]) % 64 == 0
        assert np.array_equal(tensors["latent"][:4].float().numpy(), mean.astype(np.float32))


def test_latents_that_are_not_finite_or_too_large_are_rejects(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    latent = np.zeros((8, 5, 4, 4), dtype=np.float32)
    for value, kind in ((np.nan, "nonfinite"), (-np.inf, "nonfinite"), (7e4, "out_of_range")):
        latent[3, 2, 1, 0] = value
        with pytest.raises(Rejected) as failure:
            pack_latent(latent, "float16")
        assert failure.value.reject.reason == kind
    assert pack_latent(latent, "float32").suffix == "safetensors"


def test_a_sampled_spatial_posterior_is_the_same_at_every_run(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    make_clip(tmp_path / "videos" / "a.mp4", 20)
    outputs = [tmp_path / "x", tmp_path / "y", tmp_path / "mode"]
    for output, posterior in zip(outputs, ["sample", "sample", "mode"], strict=True):
        job(
            tmp_path / "videos",
            recipe,
            dataclasses.replace(run, output=str(output)),
            tiny_card,
            spatial_posterior=posterior,
        )
    sampled, again, mode = map(tree, outputs)
    assert sampled == again and set(sampled) != set(mode)


def test_buckets_of_one_frame_take_pictures(tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card) -> None:
    make_image(tmp_path / "pictures" / "a.png")
    job(tmp_path / "pictures", recipe, run, tiny_card, buckets=(Bucket(1, 32, 56),), micro_batch=(2,))
    (row,) = assert_sound(Path(run.output))
    assert (row["num_frames"], row["latent_t"], row["fps"], row["pad_frames"]) == (1, 1, None, 3)


def test_an_output_on_a_path_that_is_not_shared_is_noticed(recipe: Recipe, run: Run) -> None:
    with pytest.raises(ConfigError, match="must be shared by all nodes"):
        ShardEncoder(EncoderSettings(recipe=recipe, run=run, columns=(), source_urls={}, job="job"))


def test_real_clips_pass_through(recipe: Recipe, run: Run, tiny_card: Card, tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"):
        (folder / name).write_bytes(package_clip(name).read_bytes())
    summary = job(folder, recipe, run, tiny_card, windows="all", fps=24.0)
    rows = assert_sound(Path(run.output))
    assert summary.counts.rejects == {} and summary.counts.samples == len([r for r in rows if r["shard"]]) > 20
    assert {row["fps"] for row in rows if row["shard"]} == {24.0}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_job_ends_with_130_and_can_go_on(videos: Path, tmp_path: Path, name: str) -> None:
    more = shutil.copytree(videos, tmp_path / "videos")
    for number in range(3):  # so that the job still runs when the signal arrives
        shutil.copy(videos / "wide0.mp4", more / f"more{number}.mp4")
    process = subprocess.Popen(command(more, tmp_path / "out"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not list((tmp_path / "out").glob("metadata/*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    assert process.wait(60) == 130
    assert "run the same command again" in process.stdout.read()
    assert main(command(more, tmp_path / "out")[2:]) == 0
    assert_sound(tmp_path / "out")


def test_columns_of_users_may_end_like_ours(run: Run, recipe: Recipe, tiny_card: Card, tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", 20)
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "offset": 7, "shard": "left"}\n')
    encode(recipe, dataclasses.replace(run, sources=(str(tmp_path / "m.jsonl"),)), tiny_card, say=lambda line: None)
    (path,) = (tmp_path / "out" / "shards").iterdir()
    with tarfile.open(path) as tar:
        text = tar.extractfile(tar.getmembers()[1])
        assert text is not None
        values = json.loads(text.read())
    assert (values["meta_offset"], values["meta_shard"]) == (7, "left") and "tensor_offset" not in values

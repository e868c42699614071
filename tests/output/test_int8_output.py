"""Outputs of type int8 from videos to training: files, bytes, errors, damage, exports, and what the report says."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import export_dataset, report, verify_dataset
from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import estimate
from pipeline.loader import LatentDataset
from pipeline.output.verify import verify
from pipeline.recipe import Recipe, Run
from pipeline.report.int8_loss import describe_loss, mean_loss_db
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.report.pages import text_of
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.oracle import assert_sound, tree

Job = tuple[Recipe, Run]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_card: Card) -> Job:
    """A finished job with int8, and a float32 output of the same clips in ``exact`` beside it."""
    folder = tmp_path_factory.mktemp("int8")
    for seed in range(3):
        make_clip(folder / "videos" / f"{seed}.mp4", 20, size=(32, 56), seed=seed)
    recipe = Recipe(
        vae=tiny_card.sha256,
        buckets=(Bucket(17, 32, 56),),
        micro_batch=(2,),
        store="mean",
        dtype="int8",
        conditioning="first",
        compute_dtype="float32",
        unit_clips=2,
    )
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=(f"v={folder / 'videos'}",), local=True, cpus=2)
    encode(recipe, run, tiny_card, silent)
    exact = dataclasses.replace(recipe, dtype="float32")
    encode(exact, dataclasses.replace(run, output=str(folder / "exact")), tiny_card, silent)
    return recipe, run


def silent(line: str) -> None:
    pass


def test_the_shards_are_as_foreseen_and_hold_values_and_scales(job: Job, tiny_card: Card, tmp_path: Path) -> None:
    recipe, run = job
    output = Path(run.output)
    rows = assert_sound(output)
    foreseen = estimate(recipe, dataclasses.replace(run, output=str(tmp_path / "out")), tiny_card, None, silent)
    shards = sorted((output / "shards").iterdir())
    assert sorted(foreseen.shard_bytes) == sorted(shard.stat().st_size for shard in shards)
    exact = LatentDataset(output.parent / "exact")
    ids = exact.columns["id"].to_pylist()
    for shard in shards:
        with tarfile.open(shard) as tar:
            files = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        (first, *_) = {name.partition(".")[0]: None for name in files}
        suffixes = [name.partition(".")[2] for name in files if name.startswith(first)]
        assert suffixes == ["latent.npy", "latent_scale.npy", "first.npy", "first_scale.npy", "json"]
        for id in {name.partition(".")[0] for name in files}:
            sample = {
                name.partition(".")[2]: np.load(io.BytesIO(data))
                for name, data in files.items()
                if name.startswith(id) and name.endswith("npy")
            }
            mean = sample["latent.npy"] * sample["latent_scale.npy"]  # the lines of the loader's page
            (latent,) = exact.read(np.array([ids.index(id)]))
            error = np.abs(mean.astype(np.float64) - latent)
            assert mean.dtype == np.float32 and (error <= sample["latent_scale.npy"] * 0.5001).all()
            (row,) = [row for row in rows if row["id"] == id]
            assert row["int8_error_max"] == error.max() and row["int8_error_mean"] == error.mean()
            facts = json.loads(files[f"{id}.json"])
            assert facts["quantization"] == {"formula": "raw = int8 * scale", "scale": "<member>_scale"}
            assert "scale_offset" not in facts and facts["scale_crc32c"] == row["scale_crc32c"]


def test_a_resumed_job_gives_the_same_bytes(job: Job, tiny_card: Card, tmp_path: Path) -> None:
    recipe, run = job
    shutil.copytree(run.output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "index")
    min((tmp_path / "out" / "metadata").iterdir()).unlink()
    encode(recipe, dataclasses.replace(run, output=str(tmp_path / "out")), tiny_card, silent)

    def promised(output: Path) -> dict[str, str]:
        return {
            path: sha for path, sha in tree(output).items() if path.split("/")[0] in ("shards", "metadata", "index")
        }

    assert promised(tmp_path / "out") == promised(Path(run.output))


def test_verify_finds_damaged_scales_and_shows_what_int8_costs(job: Job, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    shutil.copytree(job[1].output, output)
    source = job[1].sources[0]
    arguments = [str(output), "--sample", "3", "--vae", str(TINY), "--cpus", "2", "--source", source]
    assert verify_dataset.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "(float16 " in printed and "dB to int8, compared with float16" in printed
    assert "int8 differs from what the encoder gave by" in printed
    verdict = json.loads((output / "verify.json").read_text())
    rows = pq.read_table(next((output / "index").glob("*/samples-*.parquet"))).to_pylist()
    assert verdict["int8_errors"]["largest"] == max(row["int8_error_max"] for row in rows)
    for sample in verdict["compared"]:
        assert 0 < sample["mean_abs"] < sample["max_abs"] and abs(sample["float16_psnr_db"] - sample["psnr_db"]) < 0.5
    with (output / rows[0]["shard"]).open("r+b") as shard:
        shard.seek(rows[0]["first_scale_tensor_offset"])
        shard.write(np.float32(9).tobytes())
    problems = verify(Store(str(output)), silent).problems
    assert any(f"the tensor of {rows[0]['id']}" in problem for _, problem in problems)


def test_the_report_shows_errors_and_the_loss_beside_float16(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(job[1].output, output)
    assert "Stored as int8, they differ" in text_of((output / "report.html").read_text()), "a job's own report"
    arguments = ["--vae", str(TINY), "--source", job[1].sources[0], "--cpus", "2", "--samples", "1"]
    assert report.main([str(output), *arguments]) == 0
    text = text_of((output / "report.html").read_text())
    assert "(float16 " in text and "dB to int8, compared with float16" in text and "too much" not in text
    pictures = json.loads((output / "previews" / "gallery.json").read_text())
    pictures[0]["psnr_db"] = pictures[0]["float16_psnr_db"] - 0.6
    (output / "previews" / "gallery.json").write_text(json.dumps(pictures))
    assert report.main([str(output)]) == 0
    assert "lose 0.60 dB to int8" in text_of((output / "report.html").read_text())
    assert "too much: encode with --dtype float16" in text_of((output / "report.html").read_text())
    assert "Latents are int8" in (output / "README.md").read_text()


def test_the_loss_is_that_of_the_clips_with_both_numbers() -> None:
    assert mean_loss_db([]) is None and mean_loss_db([(20.0, None)]) is None
    assert mean_loss_db([(20.0, 20.5), (float("inf"), float("inf")), (7.0, None)]) == 0.25
    assert "too much" in describe_loss(0.51) and "too much" not in describe_loss(0.5)
    assert describe_loss(-0.0001).startswith("decoded clips lose 0.00 dB")


def test_exports_hold_floats(job: Job, tmp_path: Path) -> None:
    data = LatentDataset(job[1].output)
    arguments = [job[1].output, "--to", "parquet", "--output", str(tmp_path / "exported"), "--uncaptioned", "--local"]
    assert export_dataset.main(arguments) == 0
    rows = pq.read_table(tmp_path / "exported" / "data").to_pylist()
    latents = {id: array for batch in data.batches(3) for id, array in zip(batch["id"], batch["latents"], strict=True)}
    assert len(rows) == len(latents) == 3
    for row in rows:
        exported = np.array(row["latents"], np.float32).reshape(row["latent_shape"])
        assert np.array_equal(exported, latents[row["id"]].numpy())

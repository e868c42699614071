"""Damaged latents: found by their values and checksums, and replaced by samples of the same bucket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.bucket import Bucket
from pipeline.errors import IntegrityError
from pipeline.loader import LatentDataset
from pipeline.loader.collation.damage import has_non_finite
from pipeline.loader.torch_data import SampleDataset, StepSampler
from tests.bench.range_server import range_server
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56)] * 6
NAN = np.array([np.nan], np.float16).tobytes()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 samples of two buckets."""
    return write_latents(tmp_path_factory.mktemp("damage") / "out", BUCKETS)


def damage(output: Path, folder: Path, sample: int, content: bytes = NAN) -> str:
    """Overwrite some bytes within a sample's mean, in a copy of an output. Returns the sample's id."""
    if not folder.exists():
        shutil.copytree(output, folder)
    samples = LatentDataset(folder, where=f"key == '{sample}'").samples
    found = samples.take(np.array([0]), ["shard", "tensor_offset", "id"])
    with (folder / found["shard"][0]).open("r+b") as shard:
        shard.seek(int(found["tensor_offset"][0]) + 100)
        shard.write(content)
    return str(found["id"][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_non_finite_value_is_found_and_no_other(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    finite = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, 1.0, -1.0], dtype=dtype)
    assert not has_non_finite(finite.view(torch.uint8).numpy(), dtype)
    assert not has_non_finite(np.zeros(0, np.uint8), dtype)
    for value in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        for place in range(len(finite)):
            bad = finite.clone()
            bad[place] = value
            assert has_non_finite(bad.view(torch.uint8).numpy(), dtype)


@pytest.mark.parametrize("options", [{}, {"latent": "sample"}, {"dtype": None, "normalized": False}, {"shapes": "pad"}])
def test_a_value_that_is_not_finite_is_never_trained_on(output: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    name = damage(output, tmp_path / "out", 3)
    with pytest.raises(
        IntegrityError, match=f"the tensor of {name} .* some values are not finite; .*on_damage='replace'"
    ):
        list(LatentDataset(tmp_path / "out").batches(2, **options))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_damaged_sample_is_replaced_within_its_bucket(output: Path, tmp_path: Path, world_size: int) -> None:
    name = damage(output, tmp_path / "out", 3)
    whole, data = LatentDataset(output), LatentDataset(tmp_path / "out")
    replacements = []
    for rank in range(world_size):
        expected = list(whole.batches(2, rank=rank, world_size=world_size))
        batches = data.batches(2, rank=rank, world_size=world_size, on_damage="replace")
        for step, (batch, exact) in enumerate(zip(batches, expected, strict=True)):
            assert batch["latents"].shape == exact["latents"].shape and torch.isfinite(batch["latents"]).all()
            for i, replaced in enumerate(batch["replaced"]):
                if replaced is None:
                    assert batch["id"][i] == exact["id"][i] and torch.equal(batch["latents"][i], exact["latents"][i])
                    continue
                assert replaced == exact["id"][i] == name != batch["id"][i]
                (row,) = np.flatnonzero(np.array(whole.columns["id"].to_pylist()) == batch["id"][i])
                alone = SampleDataset(whole)[int(row)]
                assert torch.equal(batch["latents"][i], alone["latents"]) and batch["caption"][i] == alone["caption"]
                assert batches.replacements == [{"epoch": 0, "step": step, "damaged": name, "used": batch["id"][i]}]
        replacements += batches.replacements
        assert json.loads(json.dumps(batches.state_dict())).get("replacements", []) == batches.replacements
        resumed = data.batches(2, rank=rank, world_size=world_size, on_damage="replace")
        resumed.load_state_dict(batches.state_dict())
        assert resumed.replacements == batches.replacements
    assert len(replacements) == 1


def test_the_replacement_is_the_same_in_every_run_and_another_in_other_epochs(output: Path, tmp_path: Path) -> None:
    damage(output, tmp_path / "out", 3)
    data = LatentDataset(tmp_path / "out")
    runs = [data.batches(2, on_damage="replace") for _ in range(2)]
    used = [[batch["id"] for _ in range(4) for batch in run] for run in runs]
    assert used[0] == used[1] and len({entry["used"] for entry in runs[0].replacements}) > 1


def test_a_replacement_is_sound_itself(output: Path, tmp_path: Path) -> None:
    for sample in (1, 3, 5, 7, 9):  # all of a bucket but one
        damage(output, tmp_path / "out", sample)
    batches = LatentDataset(tmp_path / "out").batches(2, on_damage="replace")
    list(batches)
    assert len(batches.replacements) == 5 and len({entry["used"] for entry in batches.replacements}) == 1
    damage(output, tmp_path / "bad", 11)
    alone = LatentDataset(tmp_path / "bad", where="key == '11'").batches(1, on_damage="replace")
    with pytest.raises(IntegrityError, match="so are 16 samples that were to replace it"):
        list(alone)


def test_checksums_are_compared_by_default_where_whole_tensors_come_from_a_store(output: Path, tmp_path: Path) -> None:
    damage(output, tmp_path / "out", 3, content=b"\x00\x3c")  # a finite value
    local = LatentDataset(tmp_path / "out")
    assert len(list(local.batches(2, latent="sample"))) == 6
    with range_server(tmp_path / "out", 0.0, 1e12) as url:
        remote = LatentDataset(url)
        with pytest.raises(IntegrityError, match=r"is damaged: crc32c \d+, expected \d+"):
            list(remote.batches(2, latent="sample"))
        assert len(list(remote.batches(2, latent="sample", verify=False))) == 6
        assert len(list(remote.batches(2))) == 6, "half of the moments are read, so a checksum would double the bytes"


def test_data_loader_workers_replace_too(output: Path, tmp_path: Path) -> None:
    name = damage(output, tmp_path / "out", 3)
    data = LatentDataset(tmp_path / "out")
    dataset = SampleDataset(data, on_damage="replace")
    loader = DataLoader(dataset, batch_sampler=StepSampler(data, 2), num_workers=1)
    exact = data.batches(2, on_damage="replace")
    for batch, same in zip(loader, exact, strict=True):
        assert batch["id"] == same["id"] and batch["replaced"] == [replaced or "" for replaced in same["replaced"]]
    assert exact.replacements[0]["damaged"] == name

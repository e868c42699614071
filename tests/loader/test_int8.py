"""Outputs of type int8: batches equal those of a float32 output that holds the same values, with every option."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import SampleDataset, StepSampler
from pipeline.output.serialization import dequantize, quantize
from tests.bench.range_server import range_server
from tests.support import latent_set
from tests.support.latent_set import latent, write_latents
from tests.support.paths import ROOT

BUCKETS = [Bucket(34, 32, 32), Bucket(34, 32, 56), Bucket(34, 32, 32)] * 4


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An int8 output, and a float32 output with the values to which the other one rounds."""
    folder = tmp_path_factory.mktemp("int8")

    def rounded(number: int, bucket: Bucket, channels: int) -> np.ndarray:
        return dequantize(*quantize(latent(number, bucket, channels)))

    settings: dict[str, Any] = {"store": "mean", "conditioning": "first-last"}
    int8 = write_latents(folder / "int8", BUCKETS, dtype="int8", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_set, "latent", rounded)
        return int8, write_latents(folder / "float32", BUCKETS, dtype="float32", **settings)


def assert_same_batches(data: LatentDataset, exact: LatentDataset, **options: Any) -> None:
    batches, expected = data.batches(**options), exact.batches(**options)
    for batch, same in zip(batches, expected, strict=True):
        assert batch.keys() == same.keys()
        for name, value in same.items():
            got = batch[name]  # type: ignore[literal-required]
            is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
            assert torch.equal(got.nan_to_num(), value.nan_to_num()) if is_float else str(got) == str(value), name
            assert not is_float or got.dtype == value.dtype  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"batch_size": 5, "tail": "pad", "conditioning": True},
        {"batch_size": 5, "tail": "pad", "shapes": "pad", "conditioning": True, "verify": True},
        {"tokens_per_batch": 300, "shapes": "pack", "patch": (1, 2, 1)},
        {"batch_size": 2, "dtype": torch.bfloat16, "mapped": True},
        {"batch_size": 2, "dtype": torch.float16, "normalized": False, "conditioning": True},
        {"batch_size": 2, "dtype": None, "normalized": False},
        {"batch_size": 3, "dtype": None, "normalized": False, "copy": True, "tail": "pad"},
    ],
    ids=str,
)
def test_batches_are_those_of_the_rounded_floats(outputs: tuple[Path, Path], options: dict[str, Any]) -> None:
    assert_same_batches(*map(LatentDataset, outputs), **options)


@pytest.mark.parametrize("verify", [True, False])
def test_windows_have_the_scales_of_their_latent_frames(outputs: tuple[Path, Path], verify: bool) -> None:
    data, exact = (LatentDataset(output, frames=17) for output in outputs)
    assert_same_batches(data, exact, batch_size=2, verify=verify)
    for array, same in zip(data.read(np.arange(4)), exact.read(np.arange(4)), strict=True):
        assert array.dtype == np.float32 and np.array_equal(array, same)


def test_batches_converted_on_another_device_are_the_same(
    outputs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.loader.collation.conversion import Conversion

    monkeypatch.setattr(Conversion, "begin", lambda self, layout, blank: None)  # as for devices other than the CPU
    data, exact = map(LatentDataset, outputs)
    for options in ({}, {"shapes": "pad", "tail": "pad"}, {"normalized": False, "dtype": torch.bfloat16}):
        assert_same_batches(data, exact, batch_size=2, conditioning=True, **options)


def test_arrays_are_read_as_floats(outputs: tuple[Path, Path]) -> None:
    data, exact = map(LatentDataset, outputs)
    rows = np.arange(len(data))
    for member in ("latent", "first", "last"):
        for array, same in zip(data.read(rows, member=member), exact.read(rows, member=member), strict=True):
            assert array.dtype == np.float32 and np.array_equal(array, same)
    with pytest.raises(ConfigError, match="stores means only"):
        data.batches(2, latent="sample")


def test_remote_outputs_and_data_loaders_have_the_same_batches(outputs: tuple[Path, Path]) -> None:
    data, exact = map(LatentDataset, outputs)
    with range_server(outputs[0], 0.0, 1e12) as url:
        assert_same_batches(LatentDataset(url), exact, batch_size=2, conditioning=True)
    loader = DataLoader(SampleDataset(data), batch_sampler=StepSampler(data, 2), num_workers=1)
    for batch, same in zip(loader, exact.batches(2), strict=True):
        assert torch.equal(batch["latents"], same["latents"]) and batch["id"] == same["id"]


def damage(output: Path, folder: Path, column: str, content: bytes) -> str:
    """Overwrite the start of an array of sample 3 in a copy of an output; returns the sample's id."""
    shutil.copytree(output, folder)
    found = LatentDataset(folder, where="key == '3'").samples.take(np.array([0]), ["shard", column, "id"])
    with (folder / found["shard"][0]).open("r+b") as shard:
        shard.seek(int(found[column][0]))
        shard.write(content)
    return str(found["id"][0])


@pytest.mark.parametrize(
    ("column", "content", "verified", "message"),
    [
        ("scale_tensor_offset", np.float32(np.nan).tobytes(), False, r"crc32c \d+, expected"),
        ("scale_tensor_offset", np.float32(0.5).tobytes(), False, r"crc32c \d+, expected"),
        ("scale_tensor_offset", np.float32(0).tobytes(), False, r"crc32c \d+, expected"),
        ("first_scale_tensor_offset", np.float32(-1).tobytes(), False, r"crc32c \d+, expected"),
        ("tensor_offset", b"\x80", False, "some values are below -127"),
        ("tensor_offset", b"\x7f\x00\x7f", True, r"crc32c \d+, expected"),
    ],
)
def test_damage_is_found_and_replaced(
    outputs: tuple[Path, Path], tmp_path: Path, column: str, content: bytes, verified: bool, message: str
) -> None:
    name = damage(outputs[0], tmp_path / "out", column, content)
    options: dict[str, Any] = {"conditioning": True, "verify": verified}
    data = LatentDataset(tmp_path / "out")
    with pytest.raises(IntegrityError, match=f"the tensor of {name} .* is damaged: {message}"):
        list(data.batches(2, **options))
    batches, exact = data.batches(2, on_damage="replace", **options), LatentDataset(outputs[1])
    ids = exact.columns["id"].to_pylist()
    for batch in batches:
        raw = exact.read(np.array([ids.index(id) for id in batch["id"]]))
        latents = torch.from_numpy(np.stack(raw))
        same = exact.normalize({"latents": latents, "normalized": False})
        assert name not in batch["id"] and torch.equal(batch["latents"], same["latents"])
    assert [entry["damaged"] for entry in batches.replacements] == [name]


@pytest.mark.parametrize(("scale", "message"), [(np.inf, "not finite"), (np.nan, "not finite"), (-1, "negative")])
def test_impossible_scales_are_found_where_the_checksum_is_that_of_the_damage(
    outputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, message: str
) -> None:
    name = damage(outputs[0], tmp_path / "out", "scale_tensor_offset", np.float32(scale).tobytes())
    monkeypatch.setattr("pipeline.loader.collation.damage.checksum_problem", lambda pending, tensor: None)
    data = LatentDataset(tmp_path / "out")
    with pytest.raises(IntegrityError, match=f"some scales are {message}"):
        list(data.batches(2))
    assert [entry["damaged"] for entry in consumed(data).replacements] == [name]
    with pytest.raises(IntegrityError, match=f"the scales of {name} are damaged: some are negative or not finite"):
        data.read(np.arange(len(data)))


def consumed(data: LatentDataset) -> Any:
    """Batches of a whole epoch with damaged samples replaced."""
    batches = data.batches(2, on_damage="replace")
    assert all(torch.isfinite(batch["latents"]).all() for batch in batches)
    return batches


def test_stock_webdataset_reads_a_shard_by_the_recipe_of_the_page(outputs: tuple[Path, Path]) -> None:
    page = (ROOT / "pipeline" / "loader" / "README.md").read_text()
    assert 'mean = sample["latent.npy"] * sample["latent_scale.npy"]' in page
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, outputs[0].glob("shards/*.tar")))
    only = ["latent.npy", "latent_scale.npy", "json"]
    data = LatentDataset(outputs[1])
    ids = data.columns["id"].to_pylist()
    count = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode(only=only):
        mean = sample["latent.npy"] * sample["latent_scale.npy"]
        (exact,) = data.read(np.array([ids.index(sample["json"]["id"])]))
        assert mean.dtype == np.float32 and np.array_equal(mean, exact)
        count += 1
    assert count == len(data)

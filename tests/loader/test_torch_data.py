"""The loader with torch's DataLoader, torchdata, torch.distributed and Open-Sora's training step."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.loader.open_sora import open_sora_batch
from pipeline.loader.options import BatchOptions
from pipeline.loader.torch_data import SampleDataset, StepSampler
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 32)] * 8


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of three buckets, eight of them images."""
    return write_latents(tmp_path_factory.mktemp("torch") / "out", BUCKETS)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_ranks_and_workers_share_an_epoch_without_duplicates(output: Path, num_workers: int) -> None:
    data = LatentDataset(str(output))
    ids: list[str] = []
    for rank in range(2):
        sampler = StepSampler(data, 2, rank=rank, world_size=2)
        loader = DataLoader(SampleDataset(data), batch_sampler=sampler, num_workers=num_workers)
        for batch, exact in zip(loader, data.batches(2, rank=rank, world_size=2), strict=True):
            assert batch["id"] == exact["id"] and torch.equal(batch["latents"], exact["latents"])
            ids += batch["id"]
        assert sampler.epoch == 1 and len(loader) == 6
    assert len(ids) == len(set(ids)) == 24


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_data_loader_resumes_exactly(output: Path, num_workers: int) -> None:
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    data = LatentDataset(str(output))

    def loader() -> Any:
        dataset = SampleDataset(data, latent="sample", seed=3)
        return StatefulDataLoader(dataset, batch_sampler=StepSampler(data, 3, seed=3), num_workers=num_workers)

    def two_epochs(loader: Any) -> list[Any]:
        return [batch for _ in range(2) for batch in loader]

    whole = two_epochs(loader())
    assert [b["id"] for b in whole[:6]] != [b["id"] for b in whole[6:]]
    for stop in (1, 4):
        stopped = loader()
        for seen, _ in enumerate(stopped, start=1):
            if seen == stop:
                state = stopped.state_dict()
                break
        resumed = loader()
        resumed.load_state_dict(state)
        rest = two_epochs(resumed)
        assert len(rest) == 12 - stop
        for a, b in zip(rest, whole[stop:], strict=True):
            assert a["id"] == b["id"] and torch.equal(a["latents"], b["latents"])


def test_a_sampler_resumes_after_the_batches_that_were_used(output: Path) -> None:
    data = LatentDataset(str(output))
    sampler = StepSampler(data, 2)
    steps = list(sampler)
    state = StepSampler(data, 2).state_after(5)
    resumed = StepSampler(data, 2)
    resumed.load_state_dict(state)
    assert list(resumed) == steps[5:] and resumed.epoch == 1
    batches = data.batches(2)
    batches.load_state_dict(state)
    assert [batch["id"] for batch in batches] == [
        data.columns["id"].take([row for row, _ in step]).to_pylist() for step in steps[5:]
    ]
    with pytest.raises(ConfigError, match="tail must be 'drop' or 'repeat'"):
        StepSampler(data, 2, tail="pad")


def test_the_options_are_the_fields_of_one_dataclass(output: Path) -> None:
    fields = list(inspect.signature(BatchOptions).parameters)
    for call in (LatentDataset.batches, SampleDataset.__init__, StepSampler.__init__):
        assert list(inspect.signature(call).parameters)[-len(fields) :] == fields
    data = LatentDataset(str(output))
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "latent": "sample"}
    loader = DataLoader(SampleDataset(data, **options), batch_sampler=StepSampler(data, **options))
    for batch, exact in zip(loader, data.batches(**options), strict=True):
        assert batch["id"] == exact["id"] and torch.equal(batch["latents"], exact["latents"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        data.batches(batchsize=2)  # type: ignore[call-arg]
    for name, value in {"shapes": "pad", "device": "cuda", "copy": True, "threads": 4}.items():
        with pytest.raises(ConfigError, match=f"a DataLoader cannot use {name}="):
            SampleDataset(data, **{name: value})  # type: ignore[arg-type]


def test_samples_can_be_read_in_any_order(output: Path) -> None:
    data = LatentDataset(str(output))
    dataset = SampleDataset(data, normalized=False)
    assert len(dataset) == 24
    mixed = dataset.__getitems__([20, 3, 11])
    for row, sample in zip([20, 3, 11], mixed, strict=True):
        assert np.array_equal(sample["latents"].numpy(), data.read(np.array([row]))[0])
        assert sample["caption"] == f"number {sample['key']}"
    posteriors = SampleDataset(data, latent="sample")
    first, again, other = posteriors[3], posteriors[(3, 0)], posteriors[(3, 1)]
    assert torch.equal(first["latents"], again["latents"]) and not torch.equal(first["latents"], other["latents"])


RANK = """
import sys
import torch
import torch.distributed as dist
from pipeline.loader import LatentDataset

url, rendezvous, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=int(rank), world_size=2)
batches = LatentDataset(url).batches(2)
seen = []
for batch in batches:
    shapes = [None, None]
    dist.all_gather_object(shapes, (tuple(batch["latents"].shape), batch["id"]))
    assert shapes[0][0] == shapes[1][0], shapes
    total = batch["latents"].sum()
    dist.all_reduce(total)
    seen += shapes[0][1] + shapes[1][1]
assert len(seen) == len(set(seen)) == 24, seen
dist.barrier()
dist.destroy_process_group()
print("ranks", batches.rank, batches.world_size, len(batches))
"""


def test_two_processes_of_torch_distributed_stay_in_step(output: Path, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(output), str(tmp_path / "rendezvous"), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [text.splitlines()[-1] for text in printed] == ["ranks 0 2 6", "ranks 1 2 6"], printed


def test_rank_and_world_size_go_together(output: Path) -> None:
    data = LatentDataset(str(output))
    with pytest.raises(ConfigError, match="both rank and world_size"):
        data.batches(1, rank=0)
    with pytest.raises(ConfigError, match="from 0 to world_size - 1 = 1, got 2"):
        data.batches(1, rank=2, world_size=2)


def test_open_soras_batch_has_what_its_training_step_reads(output: Path) -> None:
    data = LatentDataset(str(output))
    for batch in data.batches(2):
        inputs = open_sora_batch(batch, floor_fps=True)
        assert list(inputs) == ["video", "text", "fps", "height", "width", "num_frames"]
        assert inputs["video"].dtype == torch.bfloat16 and torch.equal(inputs["video"], batch["latents"].bfloat16())
        image = batch["num_frames"][0] == 1
        assert inputs["fps"].tolist() == ([120.0, 120.0] if image else [23.0, 23.0])
        exact = open_sora_batch(batch)["fps"].tolist()
        assert exact == pytest.approx([120.0, 120.0] if image else [23.976, 23.976])
        assert (inputs["height"] // 8).tolist() == [inputs["video"].shape[3]] * 2, "pixels, not latent cells"
    for options in ({"normalized": False}, {"shapes": "pad"}):
        with pytest.raises(ConfigError, match="normalized latents of one shape"):
            open_sora_batch(next(iter(data.batches(1, **options))))  # type: ignore[arg-type]

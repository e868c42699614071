"""Epochs, positions and ranks in the loops that people write: nothing is lost, repeated or empty without a word."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import Batches, LatentDataset
from pipeline.loader.torch_data import SampleDataset, StepSampler
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 32)] * 8
STEPS = 12
"""Steps of an epoch of 24 samples in batches of 2."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of three buckets, eight of them images."""
    return write_latents(tmp_path_factory.mktemp("loops") / "out", BUCKETS)


@pytest.fixture(scope="module")
def epochs(output: Path) -> list[list[list[str]]]:
    """Ids of the batches of three epochs, each from an iteration that ran to its end."""
    batches = LatentDataset(str(output)).batches(2)
    return [[batch["id"] for batch in batches] for _ in range(3)]


@pytest.fixture
def batches(output: Path) -> Batches:
    return LatentDataset(str(output)).batches(2)


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def test_loops_that_stop_at_the_last_batch_get_every_epoch(batches: Batches, epochs: list[list[list[str]]]) -> None:
    assert ids(itertools.islice(batches, STEPS)) == epochs[0]
    assert (batches.epoch, batches.step) == (1, 0)
    assert [batch["id"] for _, batch in zip(range(len(batches)), batches, strict=False)] == epochs[1]
    iterator = iter(batches)
    assert [next(iterator)["id"] for _ in range(STEPS)] == epochs[2]
    assert batches.epoch == 3 and next(iterator, None) is None and batches.epoch == 3


def test_a_state_saved_after_the_last_batch_begins_the_next_epoch(output: Path, epochs: list[list[list[str]]]) -> None:
    data = LatentDataset(str(output))
    batches = data.batches(2)
    states = [batches.state_dict() for _ in batches]
    resumed = data.batches(2)
    resumed.load_state_dict(states[-1])
    assert ids(resumed) == epochs[1]
    resumed.load_state_dict(states[-1] | {"epoch": 0, "step": STEPS})  # as a DataLoader's sampler says it
    assert resumed.epoch == 1 and ids(resumed) == epochs[1]


def test_an_iteration_left_early_is_continued_by_the_next(batches: Batches, epochs: list[list[list[str]]]) -> None:
    seen = []
    for batch in batches:
        seen.append(batch["id"])
        if len(seen) == 5:
            break
    assert seen + ids(batches) == epochs[0] and ids(batches) == epochs[1]


def test_two_loops_at_once_raise(output: Path, batches: Batches) -> None:
    with pytest.raises(RuntimeError, match="another loop over these batches has begun"):
        list(zip(batches, batches, strict=True))
    outer = iter(batches)
    next(outer)
    assert len(ids(batches)) > 0
    with pytest.raises(RuntimeError, match="another loop over these batches has begun"):
        next(outer)
    sampler = StepSampler(LatentDataset(str(output)), 2)
    with pytest.raises(RuntimeError, match="another loop over this StepSampler has begun"):
        list(zip(sampler, sampler, strict=True))


def test_a_position_set_within_a_loop_ends_it(batches: Batches) -> None:
    state = batches.state_dict()
    loop = iter(batches)
    next(loop)
    batches.load_state_dict(state)
    with pytest.raises(RuntimeError, match="or their position was set"):
        next(loop)


def test_set_epoch_chooses_an_epoch_and_keeps_a_resumed_position(
    batches: Batches, epochs: list[list[list[str]]]
) -> None:
    batches.set_epoch(2)
    assert ids(batches) == epochs[2]
    batches.set_epoch(1)
    loop = iter(batches)
    next(loop)
    batches.set_epoch(1)
    assert ids(batches) == epochs[1][1:]
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        batches.set_epoch(-1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_validation_is_the_same_pass_every_time(output: Path, shuffle: bool) -> None:
    data = LatentDataset(str(output))
    batches = data.batches(2, shuffle=shuffle, loop="once", latent="sample")
    first = [(batch["id"], batch["latents"]) for batch in batches]
    assert len(first) == STEPS and (batches.epoch, batches.step) == (0, 0)
    for taken in (2, STEPS, 5):  # a sanity check takes two batches and leaves
        for (names, latents), batch in itertools.islice(zip(first, batches, strict=True), taken):
            assert names == batch["id"] and torch.equal(latents, batch["latents"])
    list(itertools.islice(batches, 4))
    resumed = data.batches(2, shuffle=shuffle, loop="once", latent="sample")
    resumed.load_state_dict(batches.state_dict())
    assert ids(resumed) == [names for names, _ in first[4:]] and ids(resumed) == [names for names, _ in first]


def test_without_shuffling_batches_follow_the_index_bucket_by_bucket(output: Path) -> None:
    data = LatentDataset(str(output))
    batches = data.batches(2, shuffle=False)
    keys = [int(key) for batch in batches for key in batch["key"]]
    by_bucket = [[n for n in range(24) if BUCKETS[n] == bucket] for bucket in dict.fromkeys(BUCKETS)]
    assert sorted(keys[start : start + 8] for start in (0, 8, 16)) == sorted(by_bucket)
    assert [key for batch in batches for key in map(int, batch["key"])] == keys, "every epoch has this order"
    ranks = [list(data.batches(1, shuffle=False, rank=rank, world_size=2)) for rank in range(2)]
    assert [int(step["key"][0]) for pair in zip(*ranks, strict=True) for step in pair] == keys
    with pytest.raises(ConfigError, match=r"order \(None in the state, \w+ here\)"):
        batches.load_state_dict(data.batches(2).state_dict())


def test_a_data_loader_in_this_process_continues_where_it_was_left(output: Path, epochs: list[list[list[str]]]) -> None:
    data = LatentDataset(str(output))
    loader = DataLoader(SampleDataset(data), batch_sampler=StepSampler(data, 2))
    assert ids(itertools.islice(loader, 5)) + ids(loader) == epochs[0]
    assert ids(itertools.islice(loader, STEPS)) == epochs[1]
    assert [batch["id"] for _, batch in zip(range(STEPS), loader, strict=False)] == epochs[2]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_state_after_holds_for_every_batch_that_workers_read(
    output: Path, epochs: list[list[list[str]]], num_workers: int
) -> None:
    data = LatentDataset(str(output))
    sampler = StepSampler(data, 2)
    loader = DataLoader(SampleDataset(data), batch_sampler=sampler, num_workers=num_workers)
    states = [sampler.state_after(used) for used, _ in enumerate(loader, start=1)]
    for used in (1, STEPS - 2, STEPS - 1, STEPS):
        resumed = data.batches(2)
        resumed.load_state_dict(states[used - 1])
        assert ids(resumed) == (epochs[0][used:] or epochs[1])


def test_batches_that_workers_read_ahead_are_not_lost_without_a_word(
    output: Path, epochs: list[list[list[str]]]
) -> None:
    data = LatentDataset(str(output))
    sampler = StepSampler(data, 2)
    loader = DataLoader(SampleDataset(data), batch_sampler=sampler, num_workers=1)
    seen = ids(itertools.islice(loader, 3))
    with pytest.raises(ConfigError, match=r"left early, and \d batches .*sampler\.state_after\(n\)"):
        list(loader)
    sampler.load_state_dict(sampler.state_after(3))
    assert seen + ids(loader) == epochs[0]
    list(itertools.islice(loader, 3))
    sampler.set_epoch(2)
    assert ids(loader) == epochs[2]


def test_ranks_come_from_the_launcher_where_no_process_group_exists(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = LatentDataset(str(output))
    seen: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        batches = data.batches(2)
        assert (batches.rank, batches.world_size) == (rank, 2) == (StepSampler(data, 2).rank, 2)
        seen += [name for batch in batches for name in batch["id"]]
    assert len(seen) == len(set(seen)) == 24
    assert data.batches(2, rank=0, world_size=1).world_size == 1
    for rank, world_size in (("2", "2"), ("one", "2"), ("0", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with pytest.raises(ConfigError, match=f"RANK='{rank}' and WORLD_SIZE='{world_size}' do not name a process"):
            data.batches(2)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ranks_that_disagree_are_refused_and_meshes_give_theirs(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    data = LatentDataset(str(output))
    mesh = init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("dp_replicate", "dp_shard", "cp"))
    batches = data.batches(2, mesh=mesh["dp_replicate", "dp_shard"])
    assert (batches.rank, batches.world_size) == (0, 1)
    with pytest.raises(ConfigError, match=r"dimension 'cp', .* pass its data-parallel part"):
        data.batches(2, mesh=mesh)
    with pytest.raises(ConfigError, match="either rank and world_size, or mesh"):
        data.batches(2, mesh=mesh, rank=0, world_size=1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"rank 0 of 1, but the variables RANK and WORLD_SIZE say 1 of 2"):
        data.batches(2)


def test_buckets_that_fill_no_step_are_named_once(output: Path) -> None:
    data = LatentDataset(str(output))
    with pytest.warns(UserWarning, match=r"24 of 24 samples are never trained on.* 1?.*\(8 of 10\)") as caught:
        batches = data.batches(5, rank=0, world_size=2)
    assert len(caught) == 1 and str(caught[0].filename) == __file__
    with pytest.raises(ConfigError, match=r"this epoch has no steps.*Use tail='repeat'"):
        next(iter(batches))
    with pytest.warns(UserWarning, match="never trained on") as caught:
        sampler = StepSampler(data, 5, rank=0, world_size=2)
    assert len(caught) == 1 and str(caught[0].filename) == __file__
    with pytest.raises(ConfigError, match="this epoch has no steps"):
        next(iter(sampler))
    with pytest.raises(ConfigError, match="fewer batches than there are ranks"):
        next(iter(data.batches(tokens_per_batch=10_000, shapes="pack", rank=0, world_size=8)))
    repeated = data.batches(5, tail="repeat", rank=0, world_size=2)
    assert len(ids(repeated)) == 3
    for shapes in {len({latents.shape for latents in batch["latents"]}) for batch in repeated}:
        assert shapes == 1, "samples are repeated within their bucket"


def test_the_environment_of_the_tests_names_no_rank() -> None:
    assert not os.environ.get("RANK") and not os.environ.get("WORLD_SIZE")

"""Filters that change between epochs: each epoch has its own samples on all ranks, and a state goes on exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import SampleDataset, StepSampler
from tests.loader.test_damage import damage
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(17, 32, 32, "wide"), Bucket(17, 32, 56, "tall")] * 20
"""Sample n has ``meta_score`` n / 2, so the scores go from 0 to 19.5."""
CURRICULUM = {0: "meta_score >= 4", 3: "meta_score >= 12"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_latents(tmp_path_factory.mktemp("curriculum") / "out", BUCKETS))


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def passing(output: str, where: str) -> set[str]:
    return set(LatentDataset(output, where).columns["id"].to_pylist())


def test_each_epoch_trains_on_its_own_samples_on_all_ranks(output: str) -> None:
    data = LatentDataset(output, CURRICULUM)
    ranks = [data.batches(2, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(6):
        steps = [ids(rank) for rank in ranks]
        assert len(steps[0]) == len(steps[1]) == (8 if epoch < 3 else 4)
        seen = [name for rank in steps for step in rank for name in step]
        assert set(seen) == passing(output, CURRICULUM[0 if epoch < 3 else 3]) and len(seen) == len(set(seen))
    assert len(data) == 32, "a dataset has the samples of all its epochs"


def test_an_epoch_is_the_one_that_its_filter_alone_gives(output: str) -> None:
    batches = LatentDataset(output, CURRICULUM).batches(2)
    batches.set_epoch(4)
    alone = LatentDataset(output, CURRICULUM[3]).batches(2)
    alone.set_epoch(4)
    assert ids(batches) == ids(alone)


@pytest.mark.parametrize("used", [3, 16 * 3 - 1, 16 * 3, 16 * 3 + 5])
def test_a_state_goes_on_exactly_with_another_world_size(output: str, used: int, tmp_path: Path) -> None:
    data = LatentDataset(output, CURRICULUM)
    one = data.batches(2, rank=0, world_size=1)
    whole = [batch["id"] for _ in range(5) for batch in one]
    stopped = data.batches(2, rank=0, world_size=1)
    for _ in range(used):
        next(iter(stopped))
    resumed = [LatentDataset(output, CURRICULUM, cache=tmp_path).batches(1, rank=r, world_size=2) for r in range(2)]
    for batches in resumed:
        batches.load_state_dict(stopped.state_dict())
    rest = []
    while resumed[0].epoch < 5:
        rest += [a + b for a, b in zip(*map(ids, resumed), strict=True)]
    assert whole == whole[:used] + rest


def test_a_data_loader_follows_too(output: str) -> None:
    data = LatentDataset(output, CURRICULUM)
    batches, sampler = data.batches(2), StepSampler(data, 2)
    samples = SampleDataset(data)
    for _ in range(5):
        assert [[samples[index]["id"] for index in step] for step in sampler] == ids(batches)


def test_groups_windows_and_expressions_follow_too(output: str) -> None:
    expressions = LatentDataset(output, {0: None, 2: pc.field("meta_score") >= 12}, frames=17)
    for batches in (expressions.batches(2), expressions.batches(2, groups={"wide": 1, "tall": 1}, tail="repeat")):
        epochs = [{name for batch in batches for name in batch["id"]} for _ in range(3)]
        assert len(epochs[0]) == len(epochs[1]) == 40 and epochs[2] == passing(output, "meta_score >= 12")


def test_a_replacement_passes_the_filter_of_its_epoch(output: str, tmp_path: Path) -> None:
    damage(Path(output), tmp_path / "out", 30)
    data = LatentDataset(tmp_path / "out", {0: None, 1: "meta_score >= 12 and meta_score < 16"})
    batches = data.batches(2, on_damage="replace")
    batches.set_epoch(1)
    allowed = passing(output, "meta_score >= 12 and meta_score < 16")
    for _ in range(10):
        assert {name for batch in batches for name in batch["id"]} <= allowed
    assert len(batches.replacements) == 10


def test_a_state_of_another_filter_begins_the_next_epoch_if_it_is_told_to(output: str) -> None:
    loose, strict = LatentDataset(output, CURRICULUM[0]), LatentDataset(output, CURRICULUM[3])
    ranks = [loose.batches(2, rank=rank, world_size=2) for rank in range(2)]
    states = [[rank.state_dict() for _ in itertools.islice(rank, 8)] for rank in ranks]
    for used, epoch in ((3, 1), (8, 1)):
        resumed = [strict.batches(2, rank=rank, world_size=2) for rank in range(2)]
        for rank, batches in enumerate(resumed):
            with pytest.raises(ConfigError, match=r"differs in samples .*where .*new_epoch=True"):
                batches.load_state_dict(states[rank][used - 1])
            batches.load_state_dict(states[rank][used - 1], new_epoch=True)
            assert (batches.epoch, batches.step) == (epoch, 0)
        seen = [name for rank in resumed for step in ids(rank) for name in step]
        assert set(seen) == passing(output, CURRICULUM[3]) and len(seen) == len(set(seen))
        plain = strict.batches(2, rank=0, world_size=2)
        plain.load_state_dict(resumed[0].state_dict())
        assert ids(plain) == ids(resumed[0]), "from then on, states are exact"
    with pytest.raises(ConfigError, match=r"differs in seed \(0 in the state, 1 here\)"):
        strict.batches(2, seed=1).load_state_dict(states[0][0], new_epoch=True)
    sampler = StepSampler(strict, 2)
    sampler.load_state_dict(states[0][2], new_epoch=True)
    assert (sampler.epoch, sampler.step) == (1, 0)


def test_a_state_holds_as_long_as_its_own_epoch_is_the_same(output: str) -> None:
    """Filters of later epochs may change at any time, and a plain filter may become one that changes."""
    for options in ({}, {"shuffle": False}, {"groups": {"wide": 1.0, "tall": 2.0}}, {"shapes": "pad"}):
        size: dict[str, Any] = {"batch_size": 2} if "groups" in options else {"tokens_per_batch": 300}
        plain = LatentDataset(output, CURRICULUM[0]).batches(**size, **options)
        plain.set_epoch(2)
        list(itertools.islice(plain, 2))
        changing = LatentDataset(output, CURRICULUM | {0: None, 2: "meta_score >= 3.9"}).batches(**size, **options)
        changing.load_state_dict(plain.state_dict())
        assert ids(changing) == ids(plain)
        last = LatentDataset(output, CURRICULUM[3]).batches(**size, **options)
        last.load_state_dict(changing.state_dict())
        assert ids(changing) == ids(last)


def test_states_of_another_filter_in_their_epoch_are_refused(output: str) -> None:
    batches = LatentDataset(output, CURRICULUM).batches(2)
    batches.set_epoch(3)
    for other in ({0: CURRICULUM[0], 4: CURRICULUM[3]}, CURRICULUM[0], {0: CURRICULUM[0], 3: "meta_score >= 11"}):
        with pytest.raises(ConfigError, match="differs in samples"):
            LatentDataset(output, other).batches(2).load_state_dict(batches.state_dict())
    assert LatentDataset(output, {0: "fps > 1"}).samples.digest == LatentDataset(output, "fps > 1").samples.digest


def test_filters_that_leave_an_epoch_without_samples_or_steps_are_named_at_once(output: str) -> None:
    with pytest.raises(ConfigError, match="no sample passes the filter that begins in epoch 2"):
        LatentDataset(output, {0: None, 2: "meta_score > 100"})
    with pytest.warns(UserWarning, match="from epoch 2 on, 3 of 3 samples are never trained on"):
        batches = LatentDataset(output, {0: None, 2: "meta_score > 18"}).batches(3)
    batches.set_epoch(2)
    with pytest.raises(ConfigError, match=r"this epoch has no steps\. 3 of 3 samples"):
        iter(batches)


@pytest.mark.parametrize("where", [{}, {1: "fps > 1"}, {0: None, -1: None}, {"0": None, 0: None}])
def test_filters_need_the_epochs_in_which_they_begin(output: str, where: Any) -> None:
    with pytest.raises(ConfigError, match="need the epochs in which they begin, from 0"):
        LatentDataset(output, where)

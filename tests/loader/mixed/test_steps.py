"""Several sets in one training run: drawn by weight, the same on all ranks, resumed exactly."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset, MixedDataset
from pipeline.loader.mixed.weights import draw_sets
from tests.loader.mixed.conftest import STEPS, ids, take
from tests.loader.test_damage import damage


def test_every_step_has_one_set_and_one_bucket_on_all_ranks_by_weight(mixed: MixedDataset, small: Path) -> None:
    ranks = [mixed.batches(1, rank=rank, world_size=2) for rank in range(2)]
    steps: Counter[str] = Counter()
    seen: dict[str, list[str]] = {name: [] for name in mixed.sets}
    for _ in range(6):
        for one, other in zip(*ranks, strict=True):
            assert one["dataset"] == other["dataset"] and one["latents"].shape == other["latents"].shape
            assert {one["id"][0], other["id"][0]} <= set(mixed.sets[one["dataset"]].columns["id"].to_pylist())
            steps[one["dataset"]] += 1
            seen[one["dataset"]] += [*one["id"], *other["id"]]
    assert steps.total() == 6 * STEPS and abs(steps[str(small)] - 0.75 * 6 * STEPS) <= 2
    for name, names in seen.items():
        size = len(mixed.sets[name])
        for start in range(0, len(names) - size, size):
            assert len(set(names[start : start + size])) == size, "each set goes through epochs of its own"
    assert [ranks[0].sets[str(path)].epoch for path in (small,)] == [len(seen[str(small)]) // 8]


def test_shares_hold_at_every_length() -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    draws = draw_sets(weights, 7, 0, 5000)
    for number, weight in enumerate(weights.values()):
        counts = (draws == number).cumsum()
        assert max(abs(int(count) - weight * (n + 1)) for n, count in enumerate(counts)) <= 3
    parts = [draw_sets(weights, 7, epoch, 500).tolist() for epoch in range(10)]
    assert list(itertools.chain(*parts)) == draws.tolist(), "epochs only cut the draws into parts"
    assert draws.tolist() != draw_sets(weights, 8, 0, 5000).tolist()


@pytest.mark.parametrize("used", [1, 5, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 7])
def test_a_state_goes_on_exactly(mixed: MixedDataset, used: int, large: Path, small: Path, tmp_path: Path) -> None:
    """With another world size, with the sets in another order and in other folders."""
    whole = take(mixed.batches(2), 4 * STEPS)
    stopped = mixed.batches(2)
    take(stopped, used)
    state = json.loads(json.dumps(stopped.state_dict()))
    moved = [shutil.copytree(path, tmp_path / path.name) for path in (small, large)]
    again = MixedDataset(dict(zip(moved, (0.75, 0.25), strict=True)), seed=3)
    ranks = [again.batches(1, rank=rank, world_size=2) for rank in range(2)]
    for batches in ranks:
        batches.load_state_dict(state)
        assert (batches.epoch, batches.step) == divmod(used, STEPS)
    halves = [take(batches, 3 * STEPS - used) for batches in ranks]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole[used : 3 * STEPS]


def test_loops_that_people_write_get_every_epoch_whole(mixed: MixedDataset) -> None:
    whole = take(mixed.batches(2), 4 * STEPS)
    batches = mixed.batches(2)
    assert len(batches) == STEPS
    seen = ids(itertools.islice(batches, 5))
    for batch in batches:
        seen.append(batch["id"])
    assert seen == whole[:STEPS] and (batches.epoch, batches.step) == (1, 0)
    assert [batch["id"] for _, batch in zip(range(len(batches)), batches, strict=False)] == whole[STEPS : 2 * STEPS]
    states = [batches.state_dict() for _ in batches]
    resumed = mixed.batches(2)
    resumed.load_state_dict(states[-1])
    assert resumed.epoch == 3 and ids(resumed) == whole[3 * STEPS :]
    with pytest.raises(RuntimeError, match="another loop over these batches has begun"):
        list(zip(batches, batches, strict=True))


def test_set_epoch_moves_every_set_to_where_it_is_in_that_epoch(mixed: MixedDataset) -> None:
    whole = take(mixed.batches(2), 4 * STEPS)
    batches = mixed.batches(2)
    batches.set_epoch(3)
    assert ids(batches) == whole[3 * STEPS :]
    batches.set_epoch(1)
    iterator = iter(batches)
    next(iterator)
    batches.set_epoch(1)
    assert next(iterator)["id"] == whole[STEPS + 1], "in the current epoch the position stays"
    with pytest.raises(ConfigError, match="at least 0"):
        batches.set_epoch(-1)


def test_once_gives_the_same_pass_each_time(mixed: MixedDataset) -> None:
    batches = mixed.batches(2, loop="once", shuffle=False, latent="sample")
    passes = [[batch["latents"] for batch in batches] for _ in range(3)]
    list(itertools.islice(batches, 3))
    passes.append([batch["latents"] for batch in batches])
    for other in passes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(passes[0], other, strict=True))
    state = mixed.batches(2, loop="once", shuffle=False)
    list(itertools.islice(state, 3))
    resumed = mixed.batches(2, loop="once", shuffle=False)
    resumed.load_state_dict(state.state_dict())
    assert len(ids(resumed)) == STEPS - 3 and len(ids(resumed)) == STEPS and resumed.epoch == 0


def test_weights_change_by_epoch_and_by_step(large: Path, small: Path) -> None:
    def later(epoch: int, step: int) -> float:
        return 0.0 if epoch < 1 else 1.0 if step < 20 else 3.0

    mixed = MixedDataset({large: 1.0, small: later}, steps_per_epoch=10)
    ranks = [mixed.batches(1, rank=rank, world_size=2) for rank in range(2)]
    drawn = []
    for _ in range(6):
        pairs = zip(*([batch["dataset"] for batch in rank] for rank in ranks), strict=True)
        drawn += [one for one, other in pairs if one == other]
    assert len(drawn) == 60 and drawn[:10] == [str(large)] * 10
    assert drawn[10:20].count(str(small)) == 5 and 28 <= drawn[20:].count(str(small)) <= 32
    stopped = mixed.batches(2, rank=0, world_size=1)
    take(stopped, 17)
    rest = mixed.batches(2)
    rest.load_state_dict(stopped.state_dict())
    assert take(rest, 30) == take(mixed.batches(2), 47)[17:]
    other = MixedDataset({large: 1.0, small: lambda epoch, step: 2.0}, steps_per_epoch=10).batches(2)
    with pytest.raises(
        ConfigError, match=r"other weights: .*a function\).* choose other sets in epoch 1\. .*new_epoch"
    ):
        other.load_state_dict(stopped.state_dict())
    with pytest.raises(ConfigError, match="steps_per_epoch=10, but here it is None"):
        MixedDataset({large: 1.0, small: later}).batches(2).load_state_dict(stopped.state_dict())


def test_two_filters_of_one_output_are_two_sets(large: Path) -> None:
    low, high = LatentDataset(large, "meta_score < 6"), LatentDataset(large, "meta_score >= 6")
    mixed = MixedDataset({low: 1, high: 3})
    assert list(mixed.sets) == [f"{large} where meta_score < 6", f"{large} where meta_score >= 6"]
    batches = mixed.batches(2, columns=["meta_score"])
    for _ in range(3):
        for batch in batches:
            scores: Any = dict(batch)["meta_score"]
            assert (scores < 6).all() if batch["dataset"].endswith("< 6") else (scores >= 6).all()


def test_filters_of_a_set_change_with_its_own_epochs(large: Path, small: Path) -> None:
    growing = LatentDataset(small, {0: None, 2: "num_frames == 1"})
    mixed = MixedDataset({large: 1, growing: 1})
    batches, images = mixed.batches(2), 0
    for _ in range(4):
        for batch in batches:
            if batch["dataset"] == str(small) and batches.sets[str(small)].epoch > 2:
                assert batch["latents"].shape[2] == 1
                images += 1
    assert images > 5
    stopped = mixed.batches(2)
    take(stopped, 5)
    assert stopped.sets[str(small)].epoch == 0
    other = MixedDataset({large: 1, LatentDataset(small, {0: None, 1: "num_frames == 1"}): 1}).batches(2)
    other.load_state_dict(stopped.state_dict())
    assert take(other, 4) == take(stopped, 4), "filters of later epochs may change"
    whole, jumped = take(mixed.batches(2), 5 * STEPS), mixed.batches(2)
    jumped.set_epoch(3)
    assert take(jumped, 2 * STEPS) == whole[3 * STEPS :]


def test_a_replaced_sample_is_in_the_state_of_its_set(large: Path, small: Path, tmp_path: Path) -> None:
    name = damage(small, tmp_path / "small", 100)
    mixed = MixedDataset({large: 1, tmp_path / "small": 1})
    with pytest.raises(IntegrityError, match=f"set '{tmp_path / 'small'}': .*{name}"):
        take(mixed.batches(2), 4 * STEPS)
    batches = mixed.batches(2, on_damage="replace")
    take(batches, STEPS)
    (replaced, *_) = batches.replacements
    assert replaced["dataset"] == str(tmp_path / "small") and replaced["damaged"] == name
    resumed = mixed.batches(2, on_damage="replace")
    resumed.load_state_dict(batches.state_dict())
    assert resumed.replacements == batches.replacements


def test_raw_latents_are_normalized_later(mixed: MixedDataset) -> None:
    for raw, normalized in zip(mixed.batches(2, normalized=False), mixed.batches(2), strict=True):
        assert torch.allclose(mixed.normalize(raw)["latents"], normalized["latents"])


@pytest.mark.parametrize("options", [{"tail": "pad"}, {"tail": "repeat"}, {"shapes": "pad"}, {"shapes": "pack"}])
def test_other_policies_mix_too(mixed: MixedDataset, options: dict[str, Any]) -> None:
    size = {"tokens_per_batch": 300} if options.get("shapes") == "pack" else {"batch_size": 3}
    batches = mixed.batches(**size, **options)
    whole = [batch["id"] for _ in range(3) for batch in batches]
    jumped = mixed.batches(**size, **options)
    jumped.set_epoch(2)
    assert ids(jumped) == whole[2 * len(batches) :] and len(whole) == 3 * len(batches)

"""Several sets in one training run: drawn by weight, the same on all ranks, resumed exactly."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset, MixedBatches, MixedDataset
from pipeline.loader.mixed.torch_data import MixedSampleDataset
from pipeline.loader.mixed.weights import draw_sets
from pipeline.loader.torch_data import StepSampler
from tests.loader.test_damage import damage
from tests.support.latent_set import write_latents

WIDE, TALL, IMAGE = Bucket(17, 32, 56), Bucket(17, 56, 32), Bucket(1, 32, 56)
STEPS = 16
"""Steps of an epoch of 24 + 8 samples in batches of 2."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of two buckets."""
    return write_latents(tmp_path_factory.mktemp("mixed") / "large", [WIDE, TALL] * 12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 samples of two buckets, one of which the large set has too."""
    return write_latents(tmp_path_factory.mktemp("mixed") / "small", [WIDE, IMAGE] * 4, first_key=100)


@pytest.fixture
def mixed(large: Path, small: Path) -> MixedDataset:
    return MixedDataset({large: 0.25, small: 0.75}, seed=3)


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def take(batches: MixedBatches, count: int) -> list[list[str]]:
    """Ids of the next batches, over as many epochs as they need."""
    seen: list[list[str]] = []
    while len(seen) < count:
        seen += ids(itertools.islice(batches, count - len(seen)))
    return seen


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


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda epoch, step: 0.0 if step == 3 else 1.0, "all weights are 0 in step 3 since the start of training"),
        (lambda epoch, step: -1.0, r"the weight of step 0 .* is -1\.0; weights must be finite"),
        (lambda epoch, step: float("nan"), "is nan; weights must be finite"),
        (lambda epoch, step: None, "must take epoch and step, and return a number"),
        (lambda step: 1.0, "must take epoch and step, and return a number"),
    ],
)
def test_functions_that_return_no_weights_are_refused(large: Path, weight: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(MixedDataset({large: weight}).batches(2))


@pytest.mark.parametrize("weight", [0, -1, 0.0, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_wrong_weights_are_refused(large: Path, small: Path, weight: Any) -> None:
    with pytest.raises(ConfigError, match=f"set '{small}': the weight must be a positive number, or a function"):
        MixedDataset({large: 1, small: weight})


def test_wrong_sets_are_refused(large: Path, small: Path) -> None:
    for sets in ({}, [large, small]):
        with pytest.raises(ConfigError, match="sets must be a dictionary"):
            MixedDataset(sets)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a set must be a URL, a path or a LatentDataset, got int"):
        MixedDataset({large: 1, 3: 1})  # type: ignore[dict-item]
    for again in (str(large), f"{large}/", LatentDataset(large), LatentDataset(large, "num_frames > 0")):
        with pytest.raises(ConfigError, match=r"have the same samples; give each set once"):
            MixedDataset({large: 1, small: 1, again: 1})
    with pytest.raises(ConfigError, match="has no samples"):
        MixedDataset({large: 1, LatentDataset(small, "height > 1000"): 1})
    with pytest.raises(ConfigError, match="steps_per_epoch must be at least 1"):
        MixedDataset({large: 1}, steps_per_epoch=0)
    with pytest.raises(ConfigError, match=r"the seed is that of the MixedDataset, 0; give it .*seed=4"):
        MixedDataset({large: 1}).batches(2, seed=4)


def test_two_filters_of_one_output_are_two_sets(large: Path) -> None:
    low, high = LatentDataset(large, "meta_score < 6"), LatentDataset(large, "meta_score >= 6")
    mixed = MixedDataset({low: 1, high: 3})
    assert list(mixed.sets) == [f"{large} where meta_score < 6", f"{large} where meta_score >= 6"]
    batches = mixed.batches(2, columns=["meta_score"])
    for _ in range(3):
        for batch in batches:
            scores: Any = dict(batch)["meta_score"]
            assert (scores < 6).all() if batch["dataset"].endswith("< 6") else (scores >= 6).all()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"class_name": "AutoencoderKL"}, "the class of the VAE: .* and AutoencoderKL"),
        ({"sha256": "f" * 64}, r"the VAE \(hash of its configuration and weights\): .* and ffffffffffffffff"),
        ({"shift": (0.5, 0.0, 0.0, 0.0)}, r"the normalization \(shift\): .* and \(0\.5, 0\.0"),
        ({"scale": (0.5, 1.0, 1.0, 1.0)}, r"the normalization \(scale\)"),
        ({"latent_channels": 16}, "the number of latent channels: 4 and 16"),
    ],
)
def test_latents_of_different_vaes_are_refused(large: Path, small: Path, card: dict[str, Any], message: str) -> None:
    other = LatentDataset(small)
    other.card = dataclasses.replace(other.card, **card)
    with pytest.raises(ConfigError, match=f"'{large}' and '{small}' cannot be mixed, .* differ in {message}"):
        MixedDataset({large: 1, other: 1})


def test_stores_whose_batches_differ_are_refused(large: Path, tmp_path: Path) -> None:
    means = write_latents(tmp_path / "means", [WIDE, TALL] * 3, store="mean", dtype="bfloat16", first_key=200)
    mixed = MixedDataset({large: 1, means: 1})
    for batch in mixed.batches(2):
        assert batch["latents"].dtype == torch.float32 and batch["latents"].shape[1] == 4
    with pytest.raises(ConfigError, match=f"set '{means}': this output stores means only"):
        mixed.batches(2, latent="sample")
    with pytest.raises(ConfigError, match=r"they differ in the stored dtype, .*: float16 and bfloat16"):
        mixed.batches(2, dtype=None, normalized=False)
    with pytest.raises(ConfigError, match=f"set '{large}': this output has no conditioning frames"):
        mixed.batches(2, conditioning=True)
    with pytest.raises(ConfigError, match=f"set '{large}': columns: there is no column 'clip_score'"):
        mixed.batches(2, columns=["clip_score"])
    scores = [LatentDataset(path, join=[_scores(path, kind)]) for path, kind in ((large, float), (means, str))]
    with pytest.raises(ConfigError, match="differ in the kind of column 'clip_score': number and string"):
        MixedDataset({data: 1 for data in scores}).batches(2, columns=["clip_score"])
    with pytest.raises(ConfigError, match="the way samples are cut: whole clips and windows"):
        MixedDataset({large: 1, LatentDataset(means, frames=17): 1})


def _scores(path: Path, kind: type) -> pa.Table:
    names = LatentDataset(path).columns["id"]
    return pa.table({"id": names, "clip_score": [kind(n) for n in range(len(names))]})


def test_states_of_other_mixtures_are_refused_and_can_begin_the_next_epoch(
    mixed: MixedDataset, large: Path, small: Path, tmp_path: Path
) -> None:
    batches = mixed.batches(2)
    take(batches, 5)
    state, positions = batches.state_dict(), {name: (one.epoch, one.step) for name, one in batches.sets.items()}
    third = write_latents(tmp_path / "third", [IMAGE] * 6, first_key=300)
    more = MixedDataset({large: 1, small: 1, third: 1}, seed=3).batches(2)
    with pytest.raises(ConfigError, match=rf"has 2 sets \(.*\), but here are 3 \(.*{third}.*\)\. .*new_epoch=True"):
        more.load_state_dict(state)
    with pytest.warns(UserWarning, match=f"no position of {third}; they begin with epoch 0"):
        more.load_state_dict(state, new_epoch=True)
    assert (more.epoch, more.step) == (1, 0)
    assert {name: (one.epoch, one.step) for name, one in more.sets.items()} == positions | {str(third): (0, 0)}
    later = MixedDataset({large: 1, small: 1, third: 1}, seed=3).batches(2)
    list(itertools.islice(more, 4))
    later.load_state_dict(more.state_dict())
    jumped = MixedDataset({large: 1, small: 1, third: 1}, seed=3).batches(2)
    jumped.load_state_dict(more.state_dict())
    jumped.set_epoch(3)
    ahead = take(more, 4 * len(more))
    assert take(later, len(ahead)) == ahead, "from then on, states are exact"
    assert ids(jumped) == ahead[2 * len(more) - 4 : 3 * len(more) - 4], "and epochs are counted from there"

    other_weights = MixedDataset({large: 2, small: 1}, seed=3)
    resumed = other_weights.batches(2)
    with pytest.raises(ConfigError, match="other weights"):
        resumed.load_state_dict(state)
    assert take(resumed, 20) == take(other_weights.batches(2), 20), "a state that is refused changes nothing"
    filtered = MixedDataset({LatentDataset(large, "meta_score > 3"): 0.25, small: 0.75}, seed=3).batches(2)
    with pytest.raises(ConfigError, match=r"set '.*' \('.*' in the state\): this loader state .*differs in samples"):
        filtered.load_state_dict(state)
    filtered.load_state_dict(state, new_epoch=True)
    assert filtered.sets[str(large)].epoch == positions[str(large)][0] + 1
    assert (filtered.sets[str(small)].epoch, filtered.sets[str(small)].step) == positions[str(small)]
    with pytest.raises(ConfigError, match="the seed is 4, but that of the loader state is 3"):
        MixedDataset({large: 0.25, small: 0.75}, seed=4).batches(2).load_state_dict(state)
    with pytest.raises(ConfigError, match="belongs to a MixedDataset"):
        LatentDataset(large).batches(2).load_state_dict(state)
    with pytest.raises(ConfigError, match="belongs to one set"):
        batches.load_state_dict(LatentDataset(large).batches(2).state_dict())


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


def test_sets_without_a_step_are_named(large: Path, small: Path) -> None:
    mixed = MixedDataset({large: 1, small: 1})
    with pytest.warns(UserWarning, match=rf"Set '{small}': 8 of 8 samples are never trained on") as caught:
        batches = mixed.batches(6, rank=0, world_size=1)
    assert len(caught) == 1 and str(caught[0].filename) == __file__
    with pytest.raises(ConfigError, match=f"set '{small}': this epoch has no steps"):
        len(batches)
    with pytest.warns(UserWarning, match="never trained on"):
        batches = MixedDataset({large: 1, small: 1}, steps_per_epoch=5).batches(6)
    with pytest.raises(ConfigError, match=f"set '{small}': this epoch has no steps"):
        list(batches)


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_the_same_batches(mixed: MixedDataset, num_workers: int) -> None:
    whole = [batch for batches in [mixed.batches(2)] for _ in range(3) for batch in batches]
    sampler = StepSampler(mixed, 2)
    loader = DataLoader(MixedSampleDataset(mixed), batch_sampler=sampler, num_workers=num_workers)
    seen, states = [], []
    for _ in range(2):
        for used, batch in enumerate(loader, start=1):
            seen.append(batch)
            states.append(sampler.state_after(used))
    for batch, expected in zip(seen, whole, strict=False):
        assert batch["id"] == expected["id"] and batch["dataset"] == [expected["dataset"]] * 2
        assert torch.equal(batch["latents"], expected["latents"])
    for used in (1, STEPS - 1, STEPS, STEPS + 3, 2 * STEPS):
        resumed = mixed.batches(2)
        resumed.load_state_dict(states[used - 1])
        assert take(resumed, 3 * STEPS - used) == [batch["id"] for batch in whole[used:]]


@pytest.mark.parametrize("used", [3, STEPS - 1, STEPS + 2])
def test_a_stateful_data_loader_resumes_exactly(mixed: MixedDataset, used: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        return stateful.StatefulDataLoader(
            MixedSampleDataset(mixed), batch_sampler=StepSampler(mixed, 2), num_workers=1
        )

    loader, seen, state = make(), [], None
    for batch in itertools.chain(loader, loader, loader):
        seen.append(batch["id"])
        if len(seen) == used:
            state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    rest = ids(itertools.islice(itertools.chain(resumed, resumed), 2 * STEPS - used))
    assert rest == seen[used : used + len(rest)] and len(rest) == 2 * STEPS - used


def test_names_have_no_credentials(large: Path) -> None:
    data = LatentDataset(f"file://{large}")
    assert list(MixedDataset({data: 1}).sets) == [f"file://{large}"]
    with pytest.raises(ConfigError, match="set 's3://bucket/latents': the weight") as refused:
        MixedDataset({"s3://key:secret@bucket/latents": 0})
    assert "secret" not in str(refused.value)

"""Weights, sets, filters and states that cannot be mixed: one sentence each."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset, MixedDataset
from tests.loader.mixed.conftest import IMAGE, TALL, WIDE, ids, take
from tests.support.latent_set import write_latents


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


def test_names_have_no_credentials(large: Path) -> None:
    data = LatentDataset(f"file://{large}")
    assert list(MixedDataset({data: 1}).sets) == [f"file://{large}"]
    with pytest.raises(ConfigError, match="set 's3://bucket/latents': the weight") as refused:
        MixedDataset({"s3://key:secret@bucket/latents": 0})
    assert "secret" not in str(refused.value)

"""The schedule of an epoch, over thousands of random sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.loader.options import BatchOptions
from pipeline.loader.schedule.epoch import BLANK, EpochSchedule, schedule_epoch
from pipeline.loader.schedule.keys import digest_of
from pipeline.loader.schedule.policy import BatchPolicy, BatchSize, TokenBudget

NAMES = ["32x32x17", "32x56x17", "64x64x51"]
TOKENS = np.array([80, 140, 960])

counts = st.lists(st.integers(0, 40), min_size=3, max_size=3)
policies = st.builds(
    BatchPolicy,
    budget=st.builds(BatchSize, st.integers(1, 5)),
    world_size=st.integers(1, 4),
    tail=st.sampled_from(["drop", "pad", "repeat"]),
    shapes=st.sampled_from(["bucket", "pad"]),
) | st.builds(
    BatchPolicy,
    budget=st.builds(TokenBudget, st.integers(960, 3000)),
    world_size=st.integers(1, 4),
    tail=st.sampled_from(["drop", "repeat"]),
    shapes=st.sampled_from(["bucket", "pad", "pack"]),
)


def samples(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.repeat(np.arange(3, dtype=np.uint16), counts)
    keys = np.random.default_rng(sum(counts)).integers(0, 2**64, len(codes), dtype=np.uint64)
    return keys, codes


def schedule(counts: list[int], policy: BatchPolicy, seed: int = 0, epoch: int = 0) -> EpochSchedule:
    return schedule_epoch(*samples(counts), TOKENS, policy, seed, epoch)


@given(counts, policies)
def test_every_sample_is_in_one_batch_or_counted_as_dropped(counts: list[int], policy: BatchPolicy) -> None:
    epoch = schedule(counts, policy)
    placed = [row for step in range(len(epoch)) for rank in range(policy.world_size) for row in epoch.batch(step, rank)]
    filled = [row for row in placed if row != BLANK]
    assert len(set(filled)) == len(filled) - epoch.repeated == sum(counts) - epoch.dropped
    assert placed.count(BLANK) == epoch.padded
    counted = {"drop": epoch.dropped, "pad": epoch.padded, "repeat": epoch.repeated}
    assert not any(count for tail, count in counted.items() if tail != policy.tail)


@given(counts, policies)
def test_a_step_has_one_bucket_and_one_batch_size_on_all_ranks(counts: list[int], policy: BatchPolicy) -> None:
    epoch, codes = schedule(counts, policy), samples(counts)[1]
    for step in range(len(epoch)):
        batches = [epoch.batch(step, rank) for rank in range(policy.world_size)]
        if policy.shapes != "pack":
            assert len({len(batch) for batch in batches}) == 1
        if policy.shapes == "bucket":
            assert len({codes[row] for batch in batches for row in batch if row != BLANK}) == 1
        if isinstance(policy.budget, TokenBudget):
            for batch in batches:
                assert 0 < TOKENS[codes[batch]].sum() <= policy.budget.tokens


@given(counts, st.sampled_from(["drop", "pad", "repeat"]), st.sampled_from(["bucket", "pad"]), st.integers(0, 3))
def test_other_world_sizes_take_the_same_steps(counts: list[int], tail: str, shapes: str, number: int) -> None:
    schedules = []
    for world in (1, 2, 3, 4, 12):
        policy = BatchPolicy(budget=BatchSize(12 // world), world_size=world, tail=tail, shapes=shapes)  # type: ignore[arg-type]
        schedules.append(schedule(counts, policy, epoch=number))
    for other in schedules[1:]:
        assert len(other) == len(schedules[0])
        assert all(np.array_equal(other.global_batch(s), schedules[0].global_batch(s)) for s in range(len(other)))


@given(counts, policies, st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_where_samples_are_stored(
    counts: list[int], policy: BatchPolicy, random: object
) -> None:
    keys, codes = samples(counts)
    moved = np.arange(len(keys))
    random.shuffle(moved)  # type: ignore[attr-defined]
    here = schedule_epoch(keys, codes, TOKENS, policy, 3, 1)
    there = schedule_epoch(keys[moved], codes[moved], TOKENS, policy, 3, 1)
    assert np.array_equal(here.bounds, there.bounds)
    blank = here.rows == BLANK
    assert np.array_equal(blank, there.rows == BLANK)
    assert np.array_equal(here.rows[~blank], moved[there.rows[~blank]])
    assert digest_of(keys) == digest_of(keys[moved])


def test_seeds_and_epochs_shuffle_samples_and_steps() -> None:
    policy = BatchPolicy(budget=BatchSize(2))
    base = schedule([30, 30, 30], policy)
    for other in (schedule([30, 30, 30], policy, seed=1), schedule([30, 30, 30], policy, epoch=1)):
        assert not np.array_equal(base.rows, other.rows) and not np.array_equal(base.bounds, other.bounds)
    buckets = samples([30, 30, 30])[1][base.rows[base.bounds[:, 0]]]
    assert len(set(buckets[:15])) == 3, "buckets alternate"


def test_shuffles_are_fair() -> None:
    """Over 2,000 epochs, each of 20 samples is equally often at each of 20 places."""
    seen = np.zeros((20, 20))
    for epoch in range(2000):
        rows = schedule([20, 0, 0], BatchPolicy(budget=BatchSize(20)), epoch=epoch).global_batch(0)
        seen[rows, np.arange(20)] += 1
    chi_squared = ((seen - 100) ** 2 / 100).sum()
    assert 250 < chi_squared < 500  # 361 degrees of freedom, deviation 27


def test_padding_is_spread_over_the_ranks() -> None:
    epoch = schedule([4, 0, 0], BatchPolicy(budget=BatchSize(3), world_size=4, tail="pad"))
    assert [np.count_nonzero(epoch.batch(0, rank) != BLANK) for rank in range(4)] == [1, 1, 1, 1]


def test_a_packed_batch_is_full() -> None:
    policy = BatchPolicy(budget=TokenBudget(1000), shapes="pack")
    epoch, codes = schedule([40, 40, 40], policy), samples([40, 40, 40])[1]
    batches = [epoch.batch(step, 0) for step in range(len(epoch))]
    for batch, following in itertools.pairwise(batches):
        assert TOKENS[codes[batch]].sum() + TOKENS[codes[following[0]]] > 1000
    assert len({len(batch) for batch in batches}) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either batch_size or tokens_per_batch"),
        ({"batch_size": 1, "tokens_per_batch": 1}, "either batch_size or tokens_per_batch"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "tail": "keep"}, "tail must be one of drop, pad, repeat, got 'keep'"),
        ({"batch_size": 1, "shapes": "pack"}, "needs tokens_per_batch"),
        ({"batch_size": 1, "latent": "median"}, "latent must be one of mean, sample, got 'median'"),
        ({"batch_size": 1, "threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchOptions(**arguments).policy(world_size=1)  # type: ignore[arg-type]


def test_a_budget_below_the_size_of_one_sample_is_refused() -> None:
    message = "a sample of bucket 64x64x51 has 960 tokens, more than tokens_per_batch=500"
    with pytest.raises(ConfigError, match=message):
        TokenBudget(500).check_fits(TOKENS, NAMES)

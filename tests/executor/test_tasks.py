"""The order of tasks, and the blocks in which Ray hands them over."""

from __future__ import annotations

import itertools

import pytest

from pipeline.executor.heartbeats import _LatestHeartbeats
from pipeline.executor.tasks import Task, in_blocks, in_order, pack, unpack
from pipeline.sources.units import Unit


def make_tasks(count: int) -> list[Task]:
    unit = Unit(name="u", source="s", format="tar", generation=0, start=0, stop=None)
    return [Task(unit, (str(number),)) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2000, 20_000])
def test_blocks_hold_every_task_once_and_in_order(count: int) -> None:
    tasks = make_tasks(count)
    assert list(itertools.chain.from_iterable(in_blocks(tasks, threads=2))) == tasks


def test_a_few_thousand_tasks_are_handed_over_one_by_one() -> None:
    assert {len(block) for block in in_blocks(make_tasks(3999), threads=2)} == {1}


def test_a_hundred_times_the_tasks_make_less_than_four_times_the_blocks() -> None:
    few, many = (len(list(in_blocks(make_tasks(1) * count, threads=2))) for count in (10_000, 1_000_000))
    assert many < 4 * few


@pytest.mark.parametrize("threads", [2, 600, 10_000])
def test_blocks_shrink_so_that_all_encoders_end_together(threads: int) -> None:
    remaining = 50_000
    for block in in_blocks(make_tasks(remaining), threads):
        assert len(block) == 1 or len(block) * threads * 8 <= remaining
        remaining -= len(block)
    assert len(block) == 1


def test_the_longest_tenth_comes_first_and_units_of_other_jobs_last() -> None:
    sizes = range(100)
    units = [Unit(name=str(n), source="s", format="tar", generation=0, start=0, stop=None, size=n) for n in sizes]
    found = [task.unit.size for task in in_order(units, {"95": ["a"], "3": ["b"]}, "job")]
    assert set(found[:9]) == {99, 98, 97, 96, 94, 93, 92, 91, 90} and set(found[98:]) == {95, 3}
    other = [task.unit.size for task in in_order(units, {}, "another job")]
    assert sorted(found) == sorted(other) == list(sizes) and found[9:98] != sorted(found[9:98])


def test_unpack_returns_what_was_packed() -> None:
    tasks = make_tasks(3)
    assert [Task(unit, tuple(ignored)) for unit, ignored in unpack(pack(tasks))] == tasks


def test_an_encoder_learns_with_its_next_heartbeat_that_the_job_is_stopped() -> None:
    latest = _LatestHeartbeats()
    assert latest.put("encoder", "{}") is False
    latest.stop()
    assert latest.put("encoder", "{}") is True and latest.fresh() == ["{}"]

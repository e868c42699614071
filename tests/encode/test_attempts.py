"""What earlier deaths over a unit ask of the next attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.encode.attempts import MAX_CRASHES_ALONE, MAX_UNEXPLAINED_CRASHES, Attempts, CrashHistory, list_attempts
from pipeline.encode.device_queue import Slots
from pipeline.errors import LatentmillError
from pipeline.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def attempts(store: Store, job: str = "job", node: str = "node", dead: tuple[str, ...] = ()) -> Attempts:
    return Attempts(store, job, node, lambda name: name not in dead)


def dies(by: Attempts, *in_flight: str) -> None:
    """An attempt that ends with the encoder's death."""
    number = by.crash_history("unit").number
    by.begin("unit", number)
    by.record("unit", number, list(in_flight))


def test_a_first_attempt_is_free_of_suspicion(store: Store) -> None:
    assert attempts(store).crash_history("unit") == CrashHistory()


def test_a_death_makes_the_next_attempt_careful(store: Store) -> None:
    dies(attempts(store))
    assert attempts(store).crash_history("unit") == CrashHistory(number=1, careful=True)


def test_clips_in_flight_together_are_suspects_and_alone_three_times_condemned(store: Store) -> None:
    ours = attempts(store)
    dies(ours)
    dies(ours, "a", "b")
    assert ours.crash_history("unit").isolate == {"a", "b"} and not ours.crash_history("unit").skipped_ids
    for strike in range(MAX_CRASHES_ALONE):
        assert not ours.crash_history("unit").skipped_ids, strike
        dies(ours, "b")
    assert ours.crash_history("unit").skipped_ids == {"b"}


def test_a_lost_node_is_nobodys_fault(store: Store) -> None:
    on_spot = attempts(store, node="spot", dead=("spot",))
    for _ in range(5):
        dies(on_spot, "a")
    assert attempts(store, dead=("spot",)).crash_history("unit") == CrashHistory(number=5)


def test_deaths_in_another_job_do_not_count(store: Store) -> None:
    for _ in range(5):
        dies(attempts(store, job="other"), "a")
    assert attempts(store).crash_history("unit") == CrashHistory()
    assert attempts(store).begun_by_another_job("unit", ignored=[])
    assert not attempts(store).begun_by_another_job("unit", ignored=[f"other-{n}.json" for n in range(5)])
    assert not attempts(store, job="other").begun_by_another_job("unit", ignored=[])


def test_an_encoder_that_keeps_dying_over_nothing_stops_the_job(store: Store) -> None:
    for _ in range(MAX_UNEXPLAINED_CRASHES):
        dies(attempts(store))
    with pytest.raises(LatentmillError, match="crashed 5 times during unit unit, but never while it encoded"):
        attempts(store).crash_history("unit")


def test_what_is_committed_leaves_no_records(store: Store) -> None:
    ours = attempts(store)
    dies(ours, "a")
    ours.begin("unit", 1)
    assert list_attempts(store) == {"unit": ["job-0.json", "job-1.json"]}
    ours.end("unit", 1)
    assert list_attempts(store) == {}


def test_who_asks_for_every_place_is_alone() -> None:
    places = Slots(2)
    with places.reserve(1), places.reserve(1):
        assert not places._free.acquire(blocking=False)
    with places.reserve(2):
        assert not places._free.acquire(blocking=False)

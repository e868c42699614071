"""How crashes during a unit change the next attempt at it, and how jobs see each other's attempts."""

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


def attempts_of(store: Store, job: str = "job", node: str = "node", lost_nodes: tuple[str, ...] = ()) -> Attempts:
    return Attempts(store, job, node, lambda name: name not in lost_nodes)


def crash(attempts: Attempts, *in_flight: str) -> None:
    """An attempt during which the encoder crashes."""
    number = attempts.crash_history("unit").number
    attempts.begin("unit", number)
    attempts.record("unit", number, list(in_flight))


def test_a_first_attempt_has_no_crash_history(store: Store) -> None:
    assert attempts_of(store).crash_history("unit") == CrashHistory()


def test_the_attempt_after_a_crash_is_careful(store: Store) -> None:
    crash(attempts_of(store))
    assert attempts_of(store).crash_history("unit") == CrashHistory(number=1, careful=True)


def test_clips_in_a_crash_are_isolated_and_skipped_after_three_crashes_alone(store: Store) -> None:
    attempts = attempts_of(store)
    crash(attempts)
    crash(attempts, "a", "b")
    assert attempts.crash_history("unit").isolate == {"a", "b"} and not attempts.crash_history("unit").skipped_ids
    for crashes_alone in range(MAX_CRASHES_ALONE):
        assert not attempts.crash_history("unit").skipped_ids, crashes_alone
        crash(attempts, "b")
    assert attempts.crash_history("unit").skipped_ids == {"b"}


def test_attempts_on_lost_nodes_are_not_crashes(store: Store) -> None:
    on_spot_node = attempts_of(store, node="spot", lost_nodes=("spot",))
    for _ in range(5):
        crash(on_spot_node, "a")
    assert attempts_of(store, lost_nodes=("spot",)).crash_history("unit") == CrashHistory(number=5)


def test_crashes_of_another_job_do_not_count(store: Store) -> None:
    for _ in range(5):
        crash(attempts_of(store, job="other"), "a")
    assert attempts_of(store).crash_history("unit") == CrashHistory()
    assert attempts_of(store).begun_by_another_job("unit", ignored=[])
    assert not attempts_of(store).begun_by_another_job("unit", ignored=[f"other-{n}.json" for n in range(5)])
    assert not attempts_of(store, job="other").begun_by_another_job("unit", ignored=[])


def test_repeated_crashes_without_a_clip_in_the_vae_stop_the_job(store: Store) -> None:
    for _ in range(MAX_UNEXPLAINED_CRASHES):
        crash(attempts_of(store))
    with pytest.raises(LatentmillError, match="crashed 5 times during unit unit, but never while it encoded"):
        attempts_of(store).crash_history("unit")


def test_a_committed_unit_leaves_no_records(store: Store) -> None:
    attempts = attempts_of(store)
    crash(attempts, "a")
    attempts.begin("unit", 1)
    assert list_attempts(store) == {"unit": ["job-0.json", "job-1.json"]}
    attempts.end("unit", 1)
    assert list_attempts(store) == {}


def test_a_request_for_all_slots_waits_until_all_are_free() -> None:
    slots = Slots(2)
    with slots.reserve(1), slots.reserve(1):
        assert not slots._free.acquire(blocking=False)
    with slots.reserve(2):
        assert not slots._free.acquire(blocking=False)

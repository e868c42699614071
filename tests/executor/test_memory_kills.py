"""Encoders that Ray kills for memory: said with what to lower, and the end of the job after twenty without a unit."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.errors import LatentmillError
from pipeline.executor import memory_kills
from pipeline.executor.memory_kills import MemoryKills, limited_memory_kills
from pipeline.recipe import Run

RUN = Run(output="out", vae="demo", sources=(), cpus=4, actors=3)


def test_kills_are_said_in_few_lines_and_end_the_job_only_without_a_finished_unit() -> None:
    said: list[str] = []
    totals = iter(range(1, 39))
    kills = MemoryKills(RUN, lambda: next(totals), said.append)
    assert not any(kills.check() for _ in range(18))
    kills.unit_ended()
    assert not any(kills.check() for _ in range(19))
    assert kills.check() and kills.error is not None and kills.error.exit_code == 1
    assert "Ray killed encoders 20 times in a row" in str(kills.error)
    assert "lower --cpus (now 4: decoders" in str(kills.error) and "--actors (now 3)" in str(kills.error)
    assert len(said) == 5 and said[1].startswith(
        "Ray has killed encoders 3 times because their nodes ran out of memory (3"
    )


def test_the_main_thread_is_interrupted_and_ends_with_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_kills, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(memory_kills, "count_kills", lambda: 20)
    with pytest.raises(LatentmillError, match="20 times in a row"), limited_memory_kills(RUN, lambda line: None):
        threading.Event().wait(30)


def test_ctrl_c_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), limited_memory_kills(RUN, lambda line: None):
        time.sleep(0)
        raise KeyboardInterrupt

"""A job killed at any moment is finished by the same command, with the same bytes."""

from __future__ import annotations

import re
import subprocess
import sys

from pipeline.storage.failpoints import Failpoint
from tests.end_to_end.crash import EDIT_STEPS, PURGE_STEPS, TEXT_STEPS
from tests.support.paths import ROOT


def drill(*arguments: str) -> str:
    """Output of ``python -m tests.end_to_end.crash``. The seed is new each time; a failure shows it."""
    command = [sys.executable, "-m", "tests.end_to_end.crash", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_job_killed_at_any_step_is_finished_by_the_next_with_the_same_bytes() -> None:
    survived = re.findall(r"survived (\S+):1\n", drill())
    assert survived == [step for step in Failpoint if step not in (*TEXT_STEPS, *EDIT_STEPS, *PURGE_STEPS)]


def test_a_text_job_killed_at_any_step_is_finished_by_the_next_with_the_same_bytes() -> None:
    survived = re.findall(r"survived (\S+):1\n", drill("--text"))
    assert survived == [step for step in Failpoint if step not in (Failpoint.CARD_WRITTEN, *EDIT_STEPS, *PURGE_STEPS)]


def test_a_purge_killed_twice_is_finished_by_the_next_with_the_same_bytes() -> None:
    assert "2/2 survived" in drill("--purge", "--runs", "2", "--kills", "2")


def test_two_kills_in_a_row_at_random_steps_change_nothing_either() -> None:
    assert "3/3 survived" in drill("--runs", "3", "--kills", "2")

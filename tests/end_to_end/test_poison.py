"""Encoders on real Ray that crash: because of a clip, by a signal, or with the driver. No other clip is lost.

Others may edit the output meanwhile, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jobs.edit_dataset import main as edit
from tests.support.oracle import assert_sound, tree
from tests.support.painted import HELD, VARIABLE, assert_together, command, undisturbed_tree, write_videos
from tests.support.paths import ROOT
from tests.support.processes import end, marked

NUM_VIDEOS = 16
OPTIONS = ("--cpus", "1", "--unit-clips", "2", "--micro-batch", "2", "--max-rejects", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), NUM_VIDEOS)


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return undisturbed_tree(videos, tmp_path_factory.mktemp("undisturbed") / "out", *OPTIONS)


@contextlib.contextmanager
def job(
    videos: Path, output: Path, deeds: Mapping[int | str, str | float], *more: str
) -> Iterator[subprocess.Popen[str]]:
    """A job on Ray in a process of its own. The process is ended with the ``with`` block."""
    environment = os.environ | {VARIABLE: json.dumps(deeds), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment |= {"TEST_OUTPUT": str(output)}  # by which `encoders` finds this job's processes
    process = subprocess.Popen(
        command(videos, output, *OPTIONS, *more),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        end(marked("TEST_OUTPUT", output))
        process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-5000:]
    return said


def wait_for_commits(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline_s = time.monotonic() + 120
    while len(list(output.glob("metadata/*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)


def test_clips_that_crash_the_encoder_are_rejected_and_their_neighbors_commit(
    videos: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    output = tmp_path / "out"
    with job(videos, output, {5: "segfault", 10: "killed"}) as process:
        finish(process)
    rows = assert_sound(output)
    assert_together(rows, output)
    rejects = [row for row in rows if row["reject_reason"]]
    assert [row["key"] for row in rejects] == ["05.mp4", "10.mp4"]
    assert {(row["reject_stage"], row["reject_reason"]) for row in rejects} == {("encode", "crash")}
    assert len([row for row in rows if row["shard"]]) == NUM_VIDEOS - 2
    found = tree(output)
    shards = {path for path, sha256 in undisturbed.items() if path.startswith("shards/")}
    assert len([path for path in shards if path not in found]) == 2, "only the units of the two clips differ"


def encoders(output: Path) -> set[int]:
    """Ids of the processes in which Ray runs an encoder of the job that writes to ``output``."""
    return {pid for pid, command in marked("TEST_OUTPUT", output).items() if "PaintedActor" in command}


SLOW: dict[int | str, str | float] = dict.fromkeys(range(NUM_VIDEOS), "slow")


def test_killed_encoders_and_a_killed_driver_cost_nothing(
    videos: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    output = tmp_path / "out"
    with job(videos, output, SLOW) as process:
        killed: set[int] = set()
        for commits in (1, 2):
            wait_for_commits(process, output, commits)
            while not (living := encoders(output) - killed):
                assert process.poll() is None
                time.sleep(0.05)
            killed |= living
            end(living)
        wait_for_commits(process, output, 4)
        process.kill()
    assert len(killed) == 2 and len(list(output.glob("metadata/*.parquet"))) < NUM_VIDEOS // 2
    with job(videos, output, {}) as process:
        said = finish(process)
    assert "8 units planned, 4 committed" in said or "8 units planned, 5 committed" in said
    assert not [row for row in assert_sound(output) if row["reject_reason"]]
    assert tree(output) == undisturbed


def test_an_error_in_an_encoder_is_shown_as_one_sentence(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with job(videos, output, SLOW) as process:
        wait_for_commits(process, output, 1)
        (output / "metadata").rename(tmp_path / "moved")
        (output / "metadata").write_text("in the way")
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "/metadata" in last and "Traceback" not in said


def test_an_edit_holds_for_units_that_an_encoder_on_ray_has_begun(
    videos: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """Two items are removed while no unit is committed. At least one of them is in a unit that is not begun."""
    items, held, output = tmp_path / "items", tmp_path / "held", tmp_path / "out"
    items.write_text("01.mp4\n10.mp4\n")
    held.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HELD, str(held))
        with job(videos, output, SLOW | {"slow_s": 0}, "--actors", "1") as process:
            deadline_s = time.monotonic() + 120
            while not list(output.glob("attempts/*/*")):
                assert process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.05)
            assert not list(output.glob("metadata/*"))
            assert edit([str(output), "remove", "--items", str(items), "--reason", "ticket 12"]) == 0
            held.unlink()
            finish(process)
    rows = assert_sound(output)
    assert_together(rows, output)
    assert {row["key"]: row["reject_reason"] for row in rows if not row["shard"]} == {
        "01.mp4": "removed",
        "10.mp4": "removed",
    }
    found = tree(output)
    shards = {path for path in undisturbed if path.startswith("shards/")}
    assert len([path for path in shards if path not in found]) == 2, "only the units of the two items differ"

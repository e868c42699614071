"""Jobs submitted to a cluster as in production: a head without CPUs that requires a token, and a worker that joins late."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.oracle import assert_sound, tree
from tests.support.painted import HELD, VARIABLE, command, undisturbed_tree, write_videos
from tests.support.paths import ROOT
from tests.support.processes import marked
from tests.support.ray_head import Head, ray_head, ray_node

NUM_VIDEOS = 16
OPTIONS = ("--cpus", "1", "--unit-clips", "2", "--micro-batch", "2")
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}  # Ray kills a stopped job after this time, by default 3 s
SLOW = {VARIABLE: json.dumps(dict.fromkeys(range(NUM_VIDEOS), "slow"))}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), NUM_VIDEOS)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    with ray_head(folder, "--num-cpus=0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 32) as found:
        yield found


def wait_until(happened: Callable[[], object], why: Callable[[], str], seconds: float = 90) -> None:
    deadline_s = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline_s, why()
        time.sleep(0.1)


def test_without_the_clusters_token_nothing_can_be_submitted(head: Head, tmp_path: Path) -> None:
    home = str(tmp_path)  # the real home folder may hold a token
    wrong = head.ray("job", "list", RAY_AUTH_TOKEN="1" * 32)
    absent = head.ray("job", "list", RAY_AUTH_TOKEN="", HOME=home)
    disabled = head.ray("job", "list", RAY_AUTH_TOKEN="", HOME=home, RAY_AUTH_MODE="disabled")
    for refused, why in ((wrong, "Invalid"), (absent, "find an"), (disabled, "Missing")):
        assert refused.returncode == 1 and f"{why} authentication token" in refused.stderr


def processes(output: Path) -> list[str]:
    """Command lines of the driver and the encoders of the job that writes to ``output``."""
    return [command for command in marked("TEST_OUTPUT", output).values() if "painted" in command.lower()]


def test_a_job_waits_for_a_node_is_stopped_and_goes_on_when_submitted_again(
    head: Head, videos: Path, tmp_path: Path
) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    entrypoint = ["python", *command(videos, output, *OPTIONS)[1:]]
    where = ("--working-dir", str(ROOT))
    marks = {"TEST_OUTPUT": str(output), HELD: str(held)}
    first = head.submit(*entrypoint, options=where, env_vars=SLOW | STOP_WAIT | marks)
    waits = "waiting for a node with 1 CPU and 0 GPU; the cluster's nodes have 0 CPU"
    wait_until(lambda: waits in head.log(first), lambda: head.log(first))
    assert head.status(first) == "RUNNING"
    with ray_node(head, tmp_path / "worker.log", "--num-cpus=2"):
        wait_until(lambda: len(list(output.glob("metadata/*.parquet"))) >= 2, lambda: head.log(first))
        held.touch()
        wait_until(lambda: "the wait for a node is over" in head.log(first), lambda: head.log(first))
        assert any("PaintedActor" in name for name in processes(output))
        assert head.ray("job", "stop", first).returncode == 0
        assert head.status(first) == "STOPPED"
        assert "interrupted; run the same command again to go on" in head.log(first).splitlines()
        committed = len(list(output.glob("metadata/*.parquet")))
        assert committed < NUM_VIDEOS // 2
        wait_until(lambda: not processes(output), lambda: str(processes(output)), seconds=10)
        second = head.submit(*entrypoint, options=where)
        assert head.wait(second) == "SUCCEEDED", head.log(second)
    assert f"{NUM_VIDEOS // 2} units planned, {committed} committed" in head.log(second)
    assert_sound(output)
    assert tree(output) == undisturbed_tree(videos, tmp_path / "undisturbed", *OPTIONS)

"""The lines of a job that waits for a node. ``tests/end_to_end/test_nodes.py`` has them from real Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.executor import ray_cluster
from pipeline.executor.occupied_nodes import Share
from pipeline.executor.ray_cluster import NodeWait
from pipeline.recipe import Run

RUN = Run(output="out", vae="demo", sources=(), cpus=2, gpus=1, progress_timeout_s=90.0)
SMALL = {"NodeID": "0a", "Resources": {"CPU": 8.0}}
LARGE = {"NodeID": "0b", "Resources": {"CPU": 8.0, "GPU": 1.0}}


def test_a_wait_is_said_at_once_then_ever_less_often_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    holders = "node b has 0 of 1 GPU free: job 1 has held 1 GPU for 9 s"
    monkeypatch.setattr(ray_cluster, "occupied_nodes", lambda nodes, needs: holders)
    said: list[str] = []
    wait = NodeWait(RUN, said.append)
    wait.check([SMALL], 0.0)
    wait.check([SMALL, LARGE], 30.0)
    for now_s in (60.0, 119.0, 120.0, 239.0, 240.0):
        wait.check([SMALL, LARGE], now_s)
    holders = ""
    wait.check([SMALL, LARGE], 245.0)
    wait.check([SMALL, LARGE], 250.0)
    end = "and ends after 90 s without a finished unit (--progress-timeout-s)"
    free = (
        "for a free node with 2 CPU and 1 GPU; node b has 0 of 1 GPU free: job 1 has held 1 GPU for 9 s. The job goes on "
        f"when they are free again or another node joins, {end}"
    )
    assert said == [
        "waiting for a node with 2 CPU and 1 GPU; the cluster's nodes have 8 CPU and 0 GPU. The job goes on when one joins, "
        + end,
        f"waiting 1 min {free}",
        f"waiting 2 min {free}",
        f"waiting 4 min {free}",
        "the wait for a node is over; going on",
    ]


def test_what_a_placement_group_gives_counts_as_held() -> None:
    share = Share(since_s=100.0)
    share.add(SimpleNamespace(required_resources={"CPU_group_0a": 2.0, "CPU_group_1_0a": 2.0}, start_time=50_000))
    share.add(SimpleNamespace(required_resources={"CPU": 1.0, "GPU": 0.5, "CPUs": 9.0}, start_time=0))
    assert share.amounts == {"CPU": 3.0, "GPU": 0.5} and share.since_s == 50.0

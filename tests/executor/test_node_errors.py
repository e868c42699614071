"""Units that fail on one node: the next pool of actors must not be placed there again."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.errors import StoreError
from pipeline.executor import ray_data
from pipeline.executor.node_errors import NodeError
from pipeline.executor.ray_data import encode_on_ray
from pipeline.executor.tasks import Task
from pipeline.recipe import Run
from pipeline.sources.units import Unit

MAX_POOLS = 8


class FakeRay:
    """One actor, which Ray places on the first node that is not left out."""

    def __init__(self, nodes: Sequence[str], bad: dict[str, str]) -> None:
        self.nodes = nodes
        self.bad = bad
        """Nodes on which a unit fails, by unit."""
        self.placed: list[str] = []

    def start_pool(
        self, ray: Any, tasks: Sequence[Task], maker: EncoderMaker, excluded: set[str]
    ) -> Iterator[dict[str, str]]:
        assert len(self.placed) < MAX_POOLS, f"no end: {self.placed}"
        node = next(node for node in self.nodes if node not in excluded)
        self.placed.append(node)
        for name in [task.unit.name for task in tasks]:
            if node in self.bad.get(name, ""):
                error = NodeError.of(
                    StoreError("503"), encoder="e", node=node, host="h", unit=name, started=True
                ).to_json()
                yield {"report": error}
            else:
                yield {"report": json.dumps(UnitReport(unit=name, outcome="committed").to_json())}


def run_job(nodes: Sequence[str], bad: dict[str, str]) -> tuple[list[str], list[str]]:
    """Names of the encoded units, and the node of each pool."""
    fake = FakeRay(nodes, bad)
    run = Run(output="o", vae="v", sources=(), cpus=1, actors=1)
    maker = EncoderMaker(run=run, job="job", make=mock.MagicMock())
    tasks = [Task(Unit(name=name, source="s", format="tar", generation=0, start=0, stop=None)) for name in "uvw"]
    with (
        mock.patch.multiple(
            ray_data,
            connect_to_ray=lambda run: mock.MagicMock(**{"data.exceptions.ExecutionTimeoutError": TimeoutError}),
            HeartbeatChannel=mock.MagicMock(),
            nodes_for_encoders=lambda run: set(nodes),
            _start_pool=fake.start_pool,
            _configure_ray_data=lambda *_: None,
        ),
        mock.patch.object(ray_data, "limited_memory_kills", lambda *_: contextlib.nullcontext(mock.MagicMock())),
    ):
        reports = list(encode_on_ray(tasks, maker, Heartbeats(lambda line: None)))
    return sorted(report.unit for report in reports), fake.placed


def test_a_unit_that_fails_on_a_node_goes_to_another_one() -> None:
    assert run_job("AB", {"u": "A"}) == (["u", "v", "w"], ["A", "B"])


def test_units_that_fail_on_different_nodes_are_all_encoded() -> None:
    for bad in itertools.product("AB", repeat=3):
        encoded, placed = run_job("AB", dict(zip("uvw", bad, strict=True)))
        assert encoded == ["u", "v", "w"] and len(placed) <= 3


def test_a_unit_that_fails_on_every_node_ends_the_job() -> None:
    with pytest.raises(StoreError, match="503"):
        run_job("AB", {"v": "AB"})

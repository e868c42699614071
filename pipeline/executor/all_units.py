"""Encodes units with the executor that a run asks for, until none is left to another job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.encode.attempts import list_attempts
from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.executor.local import encode_locally
from pipeline.executor.ray_data import encode_on_ray
from pipeline.executor.tasks import Executor, in_order
from pipeline.sources.units import Unit
from pipeline.storage.store import Store


def encode_units(
    store: Store, units: Sequence[Unit], maker: EncoderMaker, heartbeats: Heartbeats
) -> Iterator[UnitReport]:
    """Yield the report of every unit. Units that another job has begun are tried again at the end."""
    execute: Executor = encode_locally if maker.run.local else encode_on_ray
    while units:
        left_to_others = set()
        tasks = in_order(units, list_attempts(store), maker.job)
        for report in execute(tasks, maker, heartbeats):
            if report.outcome == "left":
                left_to_others.add(report.unit)
            else:
                yield report
        units = [unit for unit in units if unit.name in left_to_others]

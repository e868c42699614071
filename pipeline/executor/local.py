"""One encoder in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipeline.encode.encoder import UNITS_IN_FLIGHT, ShardEncoder
from pipeline.encode.unit_report import UnitReport, Watch
from pipeline.executor.tasks import Task
from pipeline.recipe import Run


def encode_locally(tasks: list[Task], run: Run, arguments: dict[str, Any], watch: Watch) -> Iterator[UnitReport]:
    """The same encoder as on Ray, in this process: two units in flight."""
    encoder = ShardEncoder(**arguments)
    watch(lambda: [encoder.pulse()])
    pool = ThreadPoolExecutor(UNITS_IN_FLIGHT)
    try:
        for done in as_completed([pool.submit(encoder.encode_unit, *task) for task in tasks]):
            yield done.result()
    finally:
        encoder.close()  # first, so that after a failure or Ctrl-C the units in flight end at once
        pool.shutdown(cancel_futures=True)

"""One encoder in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from pipeline.encode.encoder import UNITS_IN_FLIGHT, ShardEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.executor.tasks import Task
from pipeline.storage.drivers.waits import WAITS


def encode_locally(tasks: Sequence[Task], settings: EncoderSettings, heartbeats: Heartbeats) -> Iterator[UnitReport]:
    """Encode every task with one encoder in this process. Yields each report as soon as its unit has ended."""
    encoder = ShardEncoder(settings)
    heartbeats.connect(lambda: [encoder.heartbeat()], encoder.stop)
    pool = ThreadPoolExecutor(UNITS_IN_FLIGHT)
    try:
        futures = [pool.submit(encoder.encode_unit, *task) for task in tasks]
        for done in as_completed(futures):
            yield done.result()
    finally:
        with WAITS.given_up():
            encoder.close()  # before the pool, so that after a failure or Ctrl-C the units in flight end at once
            pool.shutdown(cancel_futures=True)

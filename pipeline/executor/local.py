"""One encoder in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

from pipeline.encode.unit_encoder import UNITS_IN_FLIGHT, EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.executor.tasks import Task
from pipeline.storage.drivers.waits import WAITS

LONGEST_END_S = 2.0
"""Seconds for which an interrupted job waits for its units to end."""


def encode_locally(tasks: Sequence[Task], maker: EncoderMaker, heartbeats: Heartbeats) -> Iterator[UnitReport]:
    """Encode every task with one encoder in this process. Yields each report as soon as its unit has ended."""
    encoder = maker.make()
    heartbeats.connect(lambda: [encoder.heartbeat()], encoder.stop)
    pool = ThreadPoolExecutor(UNITS_IN_FLIGHT)
    longest_s: float | None = None
    futures = [pool.submit(encoder.encode_unit, *task) for task in tasks]
    try:
        for done in as_completed(futures):
            yield done.result()
    except KeyboardInterrupt:
        longest_s = LONGEST_END_S  # a store that does not answer keeps its unit longer
        raise
    finally:
        with WAITS.given_up():
            encoder.close()  # before the pool, so that after a failure or Ctrl-C the units in flight end at once
            pool.shutdown(wait=False, cancel_futures=True)
            # a canceled future never counts as done for wait(), which would wait for ever
            wait([future for future in futures if not future.cancelled()], timeout=longest_s)

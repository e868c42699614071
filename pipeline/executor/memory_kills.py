"""Encoders that Ray kills because their node runs out of memory. Ray starts them again for ever; the job must not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import LatentmillError
from pipeline.recipe import Run

MAX_KILLS = 20
"""Number of kills without a finished unit after which the job ends."""
CHECK_EVERY_S = 5.0
"""Seconds between two counts."""
NODE_OUT_OF_MEMORY = 4
"""Ray's ``WorkerExitType`` of a process that its memory monitor killed."""


class MemoryKills:
    """Counts the kills of a job, says so, and interrupts the main thread when they are too many."""

    def __init__(self, run: Run, count: Callable[[], int], say: Callable[[str], None]) -> None:
        self._run = run
        self._count = count
        self._say = say
        self._total = self._said = self._at_last_unit = 0
        self.error: LatentmillError | None = None
        """Set before the main thread is interrupted."""

    def unit_ended(self) -> None:
        """Note that an encoder has finished a unit: the job makes progress, so the kills before it no longer count."""
        self._at_last_unit = self._total

    def check(self) -> bool:
        """Count again, and say it if there are more. Returns whether the job should end."""
        self._total = max(self._total, self._count())
        since = self._total - self._at_last_unit
        if since >= MAX_KILLS:
            self.error = LatentmillError(
                f"Ray killed encoders {since} times in a row because their nodes ran out of memory, and no unit was "
                f"finished in between. To need less, {self._advice()}; then run the same command again"
            )
        elif self._total > self._said:
            self._say(
                f"Ray has killed encoders {self._total} times because their nodes ran out of memory ({since} since the last "
                f"finished unit; the job ends after {MAX_KILLS}). To need less, {self._advice()}"
            )
            self._said = 2 * self._total  # so that many kills give few lines
        return self.error is not None

    def _advice(self) -> str:
        actors = "" if self._run.max_encoders == 1 else f", --actors (now {self._run.max_encoders})"
        return (
            f"lower --cpus (now {self._run.encoder_cpus}: decoders, and items that are fetched ahead), --item-memory-gb, "
            f"--decode-memory-gb{actors}, or --micro-batch in a new output; or use nodes with more memory"
        )


@contextmanager
def limited_memory_kills(run: Run, say: Callable[[str], None]) -> Iterator[MemoryKills]:
    """Watch the kills inside the ``with`` block, which the main thread runs. Raises the error if there are too many."""
    kills = MemoryKills(run, count_kills, say)
    done = threading.Event()
    caller = threading.get_ident()

    def watch() -> None:
        while not done.wait(CHECK_EVERY_S):
            if kills.check():
                if caller == threading.main_thread().ident:
                    signal.pthread_kill(caller, signal.SIGINT)  # it waits inside Ray
                return

    try:
        threading.Thread(target=watch, name="memory", daemon=True).start()
        yield kills
    except KeyboardInterrupt:
        if kills.error is None:
            raise
        raise kills.error from None
    finally:
        done.set()


def count_kills() -> int:
    """Number of this job's processes that Ray's memory monitor has killed; 0 if this version of Ray does not tell."""
    import ray

    try:
        from ray._private.state import state
        from ray.core.generated import gcs_pb2

        job = ray.get_runtime_context().get_job_id()
        accessor: Any = state._connect_and_get_accessor()
        workers = (gcs_pb2.WorkerTableData.FromString(row) for row in accessor.get_worker_table())
        return sum(w.exit_type == NODE_OUT_OF_MEMORY and w.job_id.hex() == job for w in workers if not w.is_alive)
    except Exception:  # a private interface of Ray, which any version may change
        return 0

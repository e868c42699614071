"""The encoder as Ray Data holds it: tasks and reports are JSON, errors are reports, a broken GPU ends the process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline import errors
from pipeline.encode.encoder import ShardEncoder
from pipeline.encode.unit_report import UnitReport
from pipeline.errors import LatentmillError
from pipeline.executor.heartbeats import EVERY_S, HeartbeatBoard
from pipeline.executor.metrics import Metrics
from pipeline.executor.tasks import Task, unpack
from stvae.memory import is_device_fault


class EncoderActor:
    """A ``ShardEncoder`` whose errors come back in rows: raised, they would reach people as pages of Ray's traceback."""

    def __init__(self, **arguments: Any) -> None:
        self.failure: LatentmillError | None = None
        try:
            self.encoder = ShardEncoder(**arguments)
        except LatentmillError as error:
            self.failure = error
            return
        self._updating = threading.Lock()
        self.metrics = Metrics(arguments["job"], self.encoder.tally.encoder)
        threading.Thread(target=self._beat, args=[HeartbeatBoard(arguments["job"])], name="pulse", daemon=True).start()

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Packed tasks to what ``read_report`` takes, one by one. Ends this process where its GPU has failed."""
        for packed in batch["tasks"]:
            for task in unpack(packed):
                yield {"report": [self._answer(task)]}

    def _answer(self, task: Task) -> str:
        try:
            if self.failure is not None:
                raise self.failure
            report = self.encoder.encode_unit(*task)
            self._update_metrics()
            self.metrics.unit_ended(report)
        except LatentmillError as error:
            return json.dumps({"error": type(error).__name__, "message": str(error)})
        except RuntimeError as error:
            if not is_device_fault(error):
                raise
            _die(error)
        return json.dumps(dataclasses.asdict(report))

    def _beat(self, board: HeartbeatBoard) -> None:
        while True:
            time.sleep(EVERY_S)
            self._update_metrics()
            board.post(self.encoder.pulse())

    def _update_metrics(self) -> None:
        with self._updating:
            self.metrics.update(self.encoder.tally, self.encoder.occupancy)


def read_report(text: str) -> UnitReport:
    """The report in an actor's row; raises the error that it carries instead."""
    values = json.loads(text)
    if "error" in values:
        raise getattr(errors, values["error"])(values["message"])
    return UnitReport(**values)


def _die(error: RuntimeError) -> NoReturn:
    """Ray starts another encoder, which finds in the records of attempts what was in flight."""
    sys.stderr.write(f"the GPU cannot be used any more: {error}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise error

"""The encoder as an actor of Ray Data. Tasks and reports are JSON, errors come back in rows, a broken GPU ends the
process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline.encode.encoder import ShardEncoder
from pipeline.encode.settings import EncoderSettings
from pipeline.encode.unit_report import UnitReport
from pipeline.errors import ConfigError, IntegrityError, LatentmillError, SourceChanged, StoreError
from pipeline.executor.heartbeats import EVERY_S, HeartbeatChannel
from pipeline.executor.metrics import Metrics
from pipeline.executor.tasks import Task, unpack
from pipeline.visible import make_foreign_text_visible, visible
from stvae.memory import is_device_fault

ERROR_CLASSES: dict[str, type[LatentmillError]] = {
    error.__name__: error for error in (LatentmillError, ConfigError, StoreError, SourceChanged, IntegrityError)
}
"""Errors that an actor can report, by name."""


class EncoderActor:
    """A ``ShardEncoder`` that returns its errors in rows. If it raised them, users would see pages of Ray's traceback."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.failure: LatentmillError | None = None
        make_foreign_text_visible()
        try:
            self.encoder = ShardEncoder(settings)
        except LatentmillError as error:
            self.failure = error
            return
        self._metrics_lock = threading.Lock()
        self.metrics = Metrics(settings.job, self.encoder.counters.encoder)
        channel = HeartbeatChannel(settings.job)
        threading.Thread(target=self._send_heartbeats, args=[channel], name="heartbeat", daemon=True).start()

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Encode packed tasks. Yields a row for ``read_report`` per task. Ends this process if its GPU has failed."""
        for packed in batch["tasks"]:
            for task in unpack(packed):
                yield {"report": [self._report(task)]}

    def _report(self, task: Task) -> str:
        """The report of a task as JSON, or its error."""
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
            _kill_process(error)
        return json.dumps(report.to_json())

    def _send_heartbeats(self, channel: HeartbeatChannel) -> None:
        while True:
            time.sleep(EVERY_S)
            self._update_metrics()
            channel.send(self.encoder.heartbeat())

    def _update_metrics(self) -> None:
        with self._metrics_lock:
            self.metrics.update(self.encoder.counters, self.encoder.utilization)


def read_report(text: str) -> UnitReport:
    """The report in an actor's row. If the row holds an error, raises it."""
    values = json.loads(text)
    if "error" in values:
        raise ERROR_CLASSES.get(values["error"], LatentmillError)(values["message"])
    return UnitReport.from_json(values)


def _kill_process(error: RuntimeError) -> NoReturn:
    """End this process. Ray starts another encoder, which finds in the records of attempts what was in the VAE."""
    sys.stderr.write(f"the GPU cannot be used any more: {visible(error)}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise error

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
from typing import Any, ClassVar, NoReturn

from pipeline.encode.unit_encoder import EncoderMaker, UnitEncoder
from pipeline.errors import LatentmillError
from pipeline.executor.heartbeats import EVERY_S, HeartbeatChannel
from pipeline.executor.metrics import Metrics
from pipeline.executor.node_errors import START_ERRORS, NodeError, own_process
from pipeline.executor.tasks import Task, unpack
from pipeline.visible import make_foreign_text_visible, visible
from stvae.memory import is_device_fault

START_EVERY_S = 20.0
"""Seconds after which an encoder that could not start tries again. Its tasks wait, so that other nodes get more."""


class EncoderActor:
    """A ``UnitEncoder`` that returns its errors in rows. If it raised them, users would see pages of Ray's traceback."""

    start_every_s: ClassVar[float] = START_EVERY_S

    def __init__(self, maker: EncoderMaker) -> None:
        make_foreign_text_visible()
        self.maker = maker
        self.encoder: UnitEncoder | None = None
        self._failure: Exception | None = None
        self._start_lock = threading.Lock()
        self._metrics_lock = threading.Lock()
        self._is_reported = False
        self._start()

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Encode packed tasks. Yields a row for ``read_row`` per task. Ends this process if its GPU has failed."""
        for packed in batch["tasks"]:
            for task in unpack(packed):
                yield {"report": [self._report(task)]}

    def _start(self) -> None:
        """Make the encoder. If that fails, another attempt may succeed: a metadata service may be busy for a minute."""
        try:
            encoder = self.maker.make()
        except START_ERRORS as error:
            self._failure, self._failed_s = error, time.monotonic()
            return
        self.metrics = Metrics(self.maker.job, encoder.counters.encoder)
        self.encoder = encoder
        channel = HeartbeatChannel(self.maker.job)
        threading.Thread(target=self._send_heartbeats, args=[encoder, channel], name="heartbeat", daemon=True).start()

    def _started_encoder(self) -> UnitEncoder | None:
        """The encoder. Where it could not start, the first caller gets None at once; later ones wait for another attempt."""
        with self._start_lock:
            if self.encoder is None and self._is_reported:
                time.sleep(max(0.0, self._failed_s + self.start_every_s - time.monotonic()))
                self._start()
            self._is_reported = True
            return self.encoder

    def _report(self, task: Task) -> str:
        """The report of a task as JSON, or its error."""
        encoder = self._started_encoder()
        if encoder is None:
            assert self._failure is not None
            return self._error(self._failure, task, started=False)
        try:
            report = encoder.encode_unit(*task)
            self._update_metrics(encoder)
            self.metrics.unit_ended(report)
        except LatentmillError as error:
            return self._error(error, task, started=True)
        except RuntimeError as error:
            if not is_device_fault(error):
                raise
            _kill_process(error)
        return json.dumps(report.to_json())

    def _error(self, error: Exception, task: Task, *, started: bool) -> str:
        return NodeError.of(error, unit=task.unit.name, started=started, **own_process()).to_json()

    def _send_heartbeats(self, encoder: UnitEncoder, channel: HeartbeatChannel) -> None:
        while True:
            time.sleep(EVERY_S)
            self._update_metrics(encoder)
            if channel.send(encoder.heartbeat()):
                encoder.stop()

    def _update_metrics(self, encoder: UnitEncoder) -> None:
        with self._metrics_lock:
            self.metrics.update(encoder.counters, encoder.utilization)


def _kill_process(error: RuntimeError) -> NoReturn:
    """End this process. Ray starts another encoder, which finds in the records of attempts what was in the VAE."""
    sys.stderr.write(f"the GPU cannot be used any more: {visible(error)}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise error

"""The encoder as Ray Data holds it: tasks and reports are JSON, errors are reports, a broken GPU ends the process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from typing import Any, NoReturn

from pipeline import errors
from pipeline.encode import Report, ShardEncoder, Task
from pipeline.errors import LatentmillError
from stvae.memory import is_device_fault


class EncoderActor:
    """A ``ShardEncoder`` whose errors come back in rows: raised, they would reach people as pages of Ray's traceback."""

    def __init__(self, **arguments: Any) -> None:
        self.failure: LatentmillError | None = None
        try:
            self.encoder = ShardEncoder(**arguments)
        except LatentmillError as error:
            self.failure = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of tasks to what ``read_report`` takes. Ends this process where its GPU has failed."""
        return {"report": [self._answer(packed) for packed in batch["task"]]}

    def _answer(self, task: bytes) -> str:
        try:
            if self.failure is not None:
                raise self.failure
            report = self.encoder.encode_unit(*Task.unpack(task))
        except LatentmillError as error:
            return json.dumps({"error": type(error).__name__, "message": str(error)})
        except RuntimeError as error:
            if not is_device_fault(error):
                raise
            _die(error)
        return json.dumps(dataclasses.asdict(report))


def read_report(text: str) -> Report:
    """The report in an actor's row; raises the error that it carries instead."""
    values = json.loads(text)
    if "error" in values:
        raise getattr(errors, values["error"])(values["message"])
    return Report(**values)


def _die(error: RuntimeError) -> NoReturn:
    """Ray starts another encoder, which finds in the records of attempts what was in flight."""
    sys.stderr.write(f"the GPU cannot be used any more: {error}\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise error

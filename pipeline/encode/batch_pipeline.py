"""The micro-batches of one unit on their way through the device, with the care that earlier crashes ask for.

While a micro-batch is on the device, the unit's thread prepares the next one and stores the results of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.encode.attempts import Attempts, CrashHistory
from pipeline.encode.utilization import Activity, UnitActivity


class Identified(Protocol):
    """Something that is encoded under the id of its row."""

    @property
    def id(self) -> str:
        """Id of the row that it becomes."""
        ...


Input = TypeVar("Input", bound=Identified)
Result = TypeVar("Result")


@dataclass(kw_only=True, slots=True)
class BatchPipeline(Generic[Input, Result]):
    """Sends micro-batches to the device one after another. Only the unit's own thread calls it."""

    unit: str
    attempts: Attempts
    history: CrashHistory
    activities: UnitActivity
    submit: Callable[[list[Input], UnitActivity], Future[dict[str, Result]]]
    """Encodes a micro-batch; its results by id."""
    store: Callable[[list[Input], Mapping[str, Result]], None]
    """Writes the results of a micro-batch. Ids in ``history.skipped_ids`` have none."""
    _on_device: tuple[list[Input], Future[dict[str, Result]]] | None = field(default=None, init=False)
    """The micro-batch that was submitted last, until its results are stored."""

    def encode(self, micro_batch: list[Input]) -> None:
        """Submit a micro-batch, then store the results of the one before."""
        if self.history.careful:
            self._encode_carefully(micro_batch)
            return
        future = self.submit(micro_batch, self.activities)
        self.finish()
        self._on_device = micro_batch, future

    def finish(self) -> None:
        """Wait for the micro-batch on the device, if there is one, and store its results."""
        if self._on_device is None:
            return
        micro_batch, future = self._on_device
        self._on_device = None
        self.activities.enter(Activity.DEVICE)
        results = future.result()
        self.activities.enter(Activity.PACK)
        self.store(micro_batch, results)

    def _encode_carefully(self, micro_batch: list[Input]) -> None:
        """Encode a micro-batch after the encoder has crashed during this unit.

        What is on the device is recorded. If a part of it was there at a crash, all are encoded one by one. Those that are
        known to crash the encoder are left out.
        """
        history = self.history
        kept = [one for one in micro_batch if one.id not in history.skipped_ids]
        one_by_one = any(one.id in history.isolate for one in kept)
        calls = [[one] for one in kept] if one_by_one else [kept] if kept else []
        results: dict[str, Result] = {}
        for call in calls:
            self.attempts.record(self.unit, history.number, [one.id for one in call])
            results |= self.submit(call, self.activities).result()
            self.attempts.record(self.unit, history.number, [])
        self.store(micro_batch, results)

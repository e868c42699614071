"""The parts of an encoder that do not depend on what it encodes: attempts at units, their records, and reports.

A ``UnitEncoder`` takes a unit and commits the unit's shard. ``ShardEncoder`` encodes clips. Layers have other encoders.
Up to ``UNITS_IN_FLIGHT`` threads call ``encode_unit``, so that one unit fills its micro-batches while another one ends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.encode.attempts import Attempts, CrashHistory, current_node, is_node_alive
from pipeline.encode.counters import EncoderCounters
from pipeline.encode.device_queue import Slots
from pipeline.encode.unit_report import Heartbeat, UnitReport
from pipeline.encode.utilization import Activity, UnitActivity, Utilization
from pipeline.environment import is_same_environment
from pipeline.errors import LatentmillError
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.recipe import Run
from pipeline.sources.units import Unit
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.store import Store

UNITS_IN_FLIGHT = 2
"""Number of units that an encoder works on at once: one fills its micro-batches while the other ends."""


class UnitEncoder(ABC):
    """Starts attempts at units of one output, and reports them."""

    counters: EncoderCounters
    utilization: Utilization

    def __init__(self, store: Store, job: str) -> None:
        """``job``: random name of the job, in the records of its attempts."""
        self.store = store
        self.node = current_node()
        self.attempts = Attempts(store, job, self.node, is_node_alive)
        self._slots = Slots(UNITS_IN_FLIGHT)
        self._stopped = threading.Event()

    def become_ready(self, confinement: str = "") -> None:
        """Begin to count and to measure. The last step of a constructor. ``confinement``: that of its decoders, as text."""
        self.counters = EncoderCounters(f"{self.node[:12] or 'local'}-{os.getpid()}", confinement)
        self.utilization = Utilization()

    @staticmethod
    def fix_numerics(*, autotune: bool) -> ExitStack:
        """Set PyTorch for exact and repeatable results in this process, until the stack is closed."""
        from stvae.numerics import exact_numerics

        stack = ExitStack()
        stack.enter_context(exact_numerics(autotune=autotune))
        return stack

    @staticmethod
    def environment_note(recorded: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
        """Return what unit metadata notes: the encoder's environment, if it is not the one in which the output was begun."""
        if is_same_environment(recorded, environment):
            return {}
        return {"environment": json.dumps(environment, sort_keys=True)}

    @abstractmethod
    def close(self) -> None:
        """End the encoder's children and threads. Units in flight end at once, with an error."""

    @abstractmethod
    def encode_shard(self, unit: Unit, history: CrashHistory, activities: UnitActivity) -> UnitReport:
        """Encode a unit and commit it; the report needs no more than unit, outcome and counts.

        It ends early, with the outcome ``stopped``, once ``is_stopped`` returns True.
        """

    def stop(self) -> None:
        """End the units in flight, and all later ones, early: their reports have the outcome ``stopped``."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        """Return True after ``stop``."""
        return self._stopped.is_set()

    def heartbeat(self) -> Heartbeat:
        """The encoder's current state."""
        return self.counters.heartbeat(self.utilization)

    def encode_unit(self, unit: Unit, ignored_attempts: Sequence[str] = ()) -> UnitReport:
        """Encode the unit and commit its shard, unless it is committed already or another job has begun it.

        ``ignored_attempts``: file names of other jobs' records that do not count.
        """
        with self.utilization.unit() as activities:
            if self.is_stopped():
                report = UnitReport(unit=unit.name, outcome="stopped")
            elif self.store.size(unit_metadata_path(unit.name)) is not None:
                report = UnitReport(unit=unit.name, outcome="already")
            elif self.attempts.begun_by_another_job(unit.name, ignored_attempts):
                report = UnitReport(unit=unit.name, outcome="left")
            else:
                report = self._attempt(unit, activities)
        report.ended_s = time.time()
        report.activities = dict(activities.seconds)
        report.wall_s, report.encode_s = sum(report.activities.values()), report.activities.get(Activity.ENCODE, 0.0)
        report.encoder, report.confinement = self.counters.encoder, self.counters.take_confinement()
        report.encoder_s, report.idle_s, _ = self.utilization.times()
        report.waited_s = WAITS.total_s
        self.counters.unit_ended(report.outcome)
        return report

    def _attempt(self, unit: Unit, activities: UnitActivity) -> UnitReport:
        """Make an attempt at the unit, with the records that it needs. After a crash it gets the encoder for itself."""
        history = self.attempts.crash_history(unit.name)
        activities.enter(Activity.DEVICE)
        with self._slots.reserve(UNITS_IN_FLIGHT if history.careful else 1):
            activities.enter(Activity.COMMIT)
            self.attempts.begin(unit.name, history.number)
            try:
                report = self.encode_shard(unit, history, activities)
            except LatentmillError:
                self.attempts.withdraw(unit.name, history.number)
                raise
            if report.outcome == "stopped":
                self.attempts.withdraw(unit.name, history.number)
            else:
                self.attempts.end(unit.name, history.number)
        return report


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderMaker:
    """Everything an executor knows of the encoders of a job. Ray sends it to their processes."""

    run: Run
    job: str
    """Random name of the job."""
    make: Callable[[], UnitEncoder]
    """Makes one encoder where it is called. It must be picklable."""

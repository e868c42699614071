"""What an encoder's time goes into: the stage of each unit in flight at every moment, and why the device was idle."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Stage(StrEnum):
    """What a unit waits for or is busy with; the keys of ``Report.stages``."""

    FETCH = "fetch"
    """The source: the next item of a tar or manifest, the bytes of a video."""
    DECODE = "decode"
    """The children that decode, when the bytes are there."""
    PACK = "pack"
    """Our own work between them: pixels into a micro-batch, latents into the tar."""
    DEVICE = "device"
    """The other unit's micro-batch in the codec."""
    ENCODE = "encode"
    """Its own micro-batch in the codec, whatever else it does meanwhile."""
    COMMIT = "commit"
    """The output's store: records of the attempt, then the tar hashed and uploaded, and the sidecar."""


NO_UNIT = "unit"
"""Cause of idle time beside the stages: there was no unit to work on."""


class Occupancy:
    """Watches the units of one encoder; for any number of threads. Costs microseconds per change of stage.

    The device is idle while no unit is in ``ENCODE``. An idle second is shared evenly by the stages that the units in
    flight are in then: the causes add up to the idle time.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._units: list[UnitStages] = []
        self._started_s = self._settled_s = now()
        self._idle: defaultdict[str, float] = defaultdict(float)
        self._stages: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def unit(self) -> Iterator[UnitStages]:
        """A unit that is in flight meanwhile; it begins in ``COMMIT``, with the record of the attempt."""
        unit = UnitStages(self, next(self._numbers))
        with self.settled():
            self._units.append(unit)
        try:
            yield unit
        finally:
            with self.settled():
                self._units.remove(unit)

    def seconds(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Since this was made: all of it, what of it the device was idle by cause, and the units' seconds by stage."""
        with self.settled():
            return self._settled_s - self._started_s, dict(self._idle), dict(self._stages)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Account for the time until now; then something may change."""
        with self._lock:
            now_s = self._now()
            spent_s, self._settled_s = now_s - self._settled_s, now_s
            for unit in self._units:
                unit.seconds[unit.stage] += spent_s
                self._stages[unit.stage] += spent_s
            causes = [str(unit.stage) for unit in self._units] or [NO_UNIT]
            if Stage.ENCODE not in causes:
                for cause in causes:
                    self._idle[cause] += spent_s / len(causes)
            yield


class UnitStages:
    """The stages of one unit, as the threads that work on it tell them."""

    def __init__(self, occupancy: Occupancy, number: int) -> None:
        self.number = number
        """Lower for units that began earlier."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """By stage, in sum the time since it began."""
        self._occupancy = occupancy
        self._stage = Stage.COMMIT
        self._encoding = False

    @property
    def stage(self) -> Stage:
        """Where the unit is."""
        return Stage.ENCODE if self._encoding else self._stage

    def enter(self, stage: Stage) -> None:
        """The unit's own thread goes on to ``stage``."""
        with self._occupancy.settled():
            self._stage = stage

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """The unit is in the codec meanwhile."""
        with self._occupancy.settled():
            self._encoding = True
        try:
            yield
        finally:
            with self._occupancy.settled():
                self._encoding = False

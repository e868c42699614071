"""Where an encoder's time goes: the activity of each unit in flight, and why the device was idle."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple


class Activity(str, Enum):
    """An activity of a unit, or something that it waits for. The values are the keys of ``UnitReport.activities``."""

    FETCH = "fetch"
    """Waits for the source: the next item of a tar or manifest, or the bytes of a video."""
    DECODE = "decode"
    """Waits for the decoding children, which have the bytes."""
    PACK = "pack"
    """Copies pixels into micro-batches and writes latents to the tar."""
    DEVICE = "device"
    """Waits for the other unit's micro-batch in the VAE."""
    ENCODE = "encode"
    """Its own micro-batch is in the VAE, whatever its thread does at the same time."""
    COMMIT = "commit"
    """Waits for the output's store: records of the attempt, then the tar and the unit metadata."""

    def __str__(self) -> str:
        return self.value


NO_UNIT = "unit"
"""Cause of idle time while the encoder has no unit. The other causes are activities."""


class Times(NamedTuple):
    """Seconds since an encoder became ready."""

    total_s: float
    """All of them."""
    idle_s: dict[str, float]
    """Seconds in which the device was idle, by cause."""
    activities_s: dict[str, float]
    """Seconds of all units by activity. Two units in flight add two seconds per second."""


class Utilization:
    """Measures the units of one encoder. Any number of threads may use it; a change of activity costs microseconds.

    The device is idle while no unit is in ``ENCODE``. An idle second is divided evenly among the activities of the units
    in flight, so the causes add up to the idle time.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._units: list[UnitActivity] = []
        self._started_s = self._updated_s = now()
        self._idle: defaultdict[str, float] = defaultdict(float)
        self._activities: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def unit(self) -> Iterator[UnitActivity]:
        """Measure a unit inside the ``with`` block. It begins in ``COMMIT``, with the record of the attempt."""
        unit = UnitActivity(self, next(self._numbers))
        with self.updated():
            self._units.append(unit)
        try:
            yield unit
        finally:
            with self.updated():
                self._units.remove(unit)

    def times(self) -> Times:
        """Seconds up to now."""
        with self.updated():
            return Times(self._updated_s - self._started_s, dict(self._idle), dict(self._activities))

    @contextmanager
    def updated(self) -> Iterator[None]:
        """Account for the time up to now. Inside the ``with`` block, activities may change."""
        with self._lock:
            now_s = self._now()
            passed_s, self._updated_s = now_s - self._updated_s, now_s
            for unit in self._units:
                unit.seconds[unit.activity] += passed_s
                self._activities[unit.activity] += passed_s
            causes = [str(unit.activity) for unit in self._units] or [NO_UNIT]
            if Activity.ENCODE not in causes:
                for cause in causes:
                    self._idle[cause] += passed_s / len(causes)
            yield


class UnitActivity:
    """The current activity of one unit. The threads that work on the unit report it."""

    def __init__(self, utilization: Utilization, number: int) -> None:
        self.number = number
        """Lower for units that began earlier."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds by activity. They add up to the time since the unit began."""
        self._utilization = utilization
        self._activity = Activity.COMMIT
        self._encoding = False

    @property
    def activity(self) -> Activity:
        """The current activity."""
        return Activity.ENCODE if self._encoding else self._activity

    def enter(self, activity: Activity) -> None:
        """Change the activity of the unit's own thread."""
        with self._utilization.updated():
            self._activity = activity

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Count the unit as in the VAE inside the ``with`` block."""
        with self._utilization.updated():
            self._encoding = True
        try:
            yield
        finally:
            with self._utilization.updated():
                self._encoding = False

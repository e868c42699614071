"""What an encoder's time goes into: the activity of each unit in flight at every moment, and why the device was idle."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Activity(StrEnum):
    """What a unit waits for or is busy with; the keys of ``Report.activities``."""

    FETCH = "fetch"
    """The source: the next item of a tar or manifest, the bytes of a video."""
    DECODE = "decode"
    """The children that decode, when the bytes are there."""
    PACK = "pack"
    """Our own work between them: pixels into a micro-batch, latents into the tar."""
    DEVICE = "device"
    """The other unit's micro-batch in the VAE."""
    ENCODE = "encode"
    """Its own micro-batch in the VAE, whatever else it does meanwhile."""
    COMMIT = "commit"
    """The output's store: records of the attempt, then the tar hashed and uploaded, and the unit metadata."""


NO_UNIT = "unit"
"""Cause of idle time beside the activities: there was no unit to work on."""


class Utilization:
    """Watches the units of one encoder; for any number of threads. Costs microseconds per change of activity.

    The device is idle while no unit is in ``ENCODE``. An idle second is shared evenly by the activities that the units in
    flight are in then: the causes add up to the idle time.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._units: list[UnitActivity] = []
        self._started_s = self._settled_s = now()
        self._idle: defaultdict[str, float] = defaultdict(float)
        self._activities: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def unit(self) -> Iterator[UnitActivity]:
        """A unit that is in flight meanwhile; it begins in ``COMMIT``, with the record of the attempt."""
        unit = UnitActivity(self, next(self._numbers))
        with self.settled():
            self._units.append(unit)
        try:
            yield unit
        finally:
            with self.settled():
                self._units.remove(unit)

    def seconds(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Since this was made: all of it, what of it the device was idle by cause, and the units' seconds by activity."""
        with self.settled():
            return self._settled_s - self._started_s, dict(self._idle), dict(self._activities)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Account for the time until now; then something may change."""
        with self._lock:
            now_s = self._now()
            spent_s, self._settled_s = now_s - self._settled_s, now_s
            for unit in self._units:
                unit.seconds[unit.activity] += spent_s
                self._activities[unit.activity] += spent_s
            causes = [str(unit.activity) for unit in self._units] or [NO_UNIT]
            if Activity.ENCODE not in causes:
                for cause in causes:
                    self._idle[cause] += spent_s / len(causes)
            yield


class UnitActivity:
    """The activities of one unit, as the threads that work on it tell them."""

    def __init__(self, occupancy: Utilization, number: int) -> None:
        self.number = number
        """Lower for units that began earlier."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """By activity, in sum the time since it began."""
        self._occupancy = occupancy
        self._activity = Activity.COMMIT
        self._encoding = False

    @property
    def activity(self) -> Activity:
        """Where the unit is."""
        return Activity.ENCODE if self._encoding else self._activity

    def enter(self, activity: Activity) -> None:
        """The unit's own thread goes on to ``activity``."""
        with self._occupancy.settled():
            self._activity = activity

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """The unit is in the VAE meanwhile."""
        with self._occupancy.settled():
            self._encoding = True
        try:
            yield
        finally:
            with self._occupancy.settled():
                self._encoding = False

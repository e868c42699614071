"""Counts of an encoder's work so far, in units that have ended and in units in flight."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.encode.unit_report import Heartbeat, UnitHeartbeat
from pipeline.encode.utilization import Utilization
from pipeline.output.counts import Counts
from pipeline.sources.formats import num_items_of
from pipeline.sources.units import Unit
from pipeline.storage.drivers.waits import WAITS


@dataclass(kw_only=True, slots=True)
class UnitInFlight:
    """A unit that is being encoded, and how far it is. The unit's own thread updates it."""

    unit: Unit
    counts: Counts
    """Outcomes so far."""
    begun: set[int] = field(default_factory=set)
    """Ordinals of the items with an outcome so far. Ranges of one file take turns, so an item may not be done."""

    @property
    def share(self) -> float | None:
        """Share of the unit's items that is done; None if the source's format does not count them in advance."""
        num_items = num_items_of(self.unit)
        return None if num_items is None else max(0, len(self.begun) - 1) / max(1, num_items)

    def heartbeat(self) -> UnitHeartbeat:
        """Its state as plain values."""
        counts = self.counts
        return {
            "samples": counts.samples,
            "captions": counts.captions,
            "frames": counts.frames,
            "windows": counts.windows,
            "rejects": dict(counts.rejects),
            "share": self.share,
        }


@dataclass(kw_only=True, slots=True)
class EncoderTotals:
    """Totals of one encoder since it became ready. Work that a later attempt repeats counts each time."""

    units: Counter[str] = field(default_factory=Counter)
    """Number of units that have ended, by outcome."""
    counts: Counts = field(default_factory=Counts)
    """Outcomes of windows, those of units in flight included."""


class EncoderCounters:
    """Counters of one encoder. Any number of threads may use them."""

    def __init__(self, encoder: str, confinement: str = "") -> None:
        self.encoder = encoder
        """Name of the encoder, different from the names of all others."""
        self.confinement = confinement
        """Confinement of its decoders, as text."""
        self._is_confinement_reported = False
        self._lock = threading.Lock()
        self._ended = EncoderTotals()
        self._in_flight: list[UnitInFlight] = []

    @contextmanager
    def in_flight(self, unit: Unit, counts: Counts) -> Iterator[UnitInFlight]:
        """Count the unit as in flight inside the ``with`` block. ``counts`` are the unit's own and grow meanwhile."""
        in_flight = UnitInFlight(unit=unit, counts=counts)
        with self._lock:
            self._in_flight.append(in_flight)
        try:
            yield in_flight
        finally:
            with self._lock:
                self._in_flight.remove(in_flight)
                self._ended.counts += counts

    def unit_ended(self, outcome: str) -> None:
        """Count one more unit that has ended."""
        with self._lock:
            self._ended.units[outcome] += 1

    def take_confinement(self) -> str:
        """Return what confines the decoders, the first time; an empty text after that."""
        with self._lock:
            is_reported, self._is_confinement_reported = self._is_confinement_reported, True
        return "" if is_reported else self.confinement

    def totals(self) -> EncoderTotals:
        """Totals up to now."""
        with self._lock:
            counts = sum((unit.counts for unit in self._in_flight), self._ended.counts)
            return EncoderTotals(units=Counter(self._ended.units), counts=counts)

    def heartbeat(self, utilization: Utilization) -> Heartbeat:
        """The encoder's state for the driver."""
        times = utilization.times()
        with self._lock:
            units = {unit.unit.name: unit.heartbeat() for unit in self._in_flight}
        return {
            "encoder": self.encoder,
            "confinement": self.confinement,
            "encoder_s": times.total_s,
            "idle_s": times.idle_s,
            "waits": WAITS.texts(),
            "waited_s": WAITS.total_s,
            "units": units,
        }

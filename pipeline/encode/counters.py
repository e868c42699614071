"""What an encoder has done so far: in units that have ended, and in those in flight."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.encode.utilization import Utilization
from pipeline.output.counts import Counts
from pipeline.sources.formats import format_of
from pipeline.sources.units import Unit


@dataclass(kw_only=True, slots=True)
class InFlight:
    """A unit that is being encoded."""

    unit: Unit
    counts: Counts
    ordinal: int
    """Of the item that it has come to."""

    @property
    def share(self) -> float | None:
        """Share of the unit's items that is done; None if the source's format does not count them in advance."""
        num_items = format_of(self.unit).num_items(self.unit)
        return None if num_items is None else (self.ordinal - self.unit.start) / max(1, num_items)


@dataclass(kw_only=True, slots=True)
class EncoderTotals:
    """Of one encoder since it was ready. Work that a later attempt repeats counts each time."""

    units: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    samples: int = 0
    frames: int = 0
    skips: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    size_bytes: int = 0
    """Of committed tars."""

    def add(self, counts: Counts | EncoderTotals) -> None:
        """Count a unit's windows."""
        self.samples += counts.samples
        self.frames += counts.frames
        self.skips += Counter(counts.skips)
        self.rejects += Counter(counts.rejects)


class EncoderCounters:
    """Counts for any number of threads; ``encoder`` is a name to tell it from others."""

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder
        self._lock = threading.Lock()
        self._ended = EncoderTotals()
        self._in_flight: list[InFlight] = []

    @contextmanager
    def in_flight(self, unit: Unit, counts: Counts) -> Iterator[InFlight]:
        """A unit that is being encoded meanwhile; ``counts`` are its own, as they grow."""
        begun = InFlight(unit=unit, counts=counts, ordinal=unit.start)
        with self._lock:
            self._in_flight.append(begun)
        try:
            yield begun
        finally:
            with self._lock:
                self._in_flight.remove(begun)
                self._ended.add(counts)

    def end(self, outcome: str, size_bytes: int) -> None:
        """One more unit has ended, with so many bytes of its tar committed."""
        with self._lock:
            self._ended.units[outcome] += 1
            self._ended.size_bytes += size_bytes

    def totals(self) -> EncoderTotals:
        """Everything until now."""
        total = EncoderTotals()
        with self._lock:
            total.units, total.size_bytes = Counter(self._ended.units), self._ended.size_bytes
            total.add(self._ended)
            for begun in self._in_flight:
                total.add(begun.counts)
        return total

    def pulse(self, occupancy: Utilization) -> dict[str, Any]:
        """What the driver wants to know between reports, as plain values: the units in flight and the idle time."""
        encoder_s, idle_s, _ = occupancy.seconds()
        with self._lock:
            units = {
                begun.unit.name: {
                    "samples": begun.counts.samples,
                    "frames": begun.counts.frames,
                    "windows": begun.counts.windows,
                    "share": begun.share,
                }
                for begun in self._in_flight
            }
        return {"encoder": self.encoder, "encoder_s": encoder_s, "idle_s": idle_s, "units": units}

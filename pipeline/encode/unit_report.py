"""Messages from an encoder to its driver: a report when a unit ends, and heartbeats in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

from pipeline.output.counts import Counts


@dataclass(kw_only=True, slots=True)
class UnitReport:
    """The result of one unit in one job. Nothing else goes back to the driver."""

    unit: str
    """Name of the unit."""
    outcome: str
    """``committed``; ``lost``: another attempt committed first; ``already``: it was committed before; ``left``: another
    job is working on it; ``stopped``: it was given up, because the job has too many rejects."""
    counts: Counts = field(default_factory=Counts)
    """Outcomes of the unit's windows in this job."""
    ended_s: float = 0.0
    """Unix time at which the unit ended."""
    wall_s: float = 0.0
    """Seconds from the unit's begin to its end."""
    encode_s: float = 0.0
    """Seconds that its micro-batches were in the VAE."""
    activities: dict[str, float] = field(default_factory=dict)
    """Seconds by ``utilization.Activity``. They add up to ``wall_s``."""
    encoder: str = ""
    """Name of the encoder: its node and process."""
    encoder_s: float = 0.0
    """Seconds since that encoder became ready."""
    confinement: str = ""
    """Measures against that encoder's decoders, and attacks that remain possible; empty after its first report."""
    idle_s: dict[str, float] = field(default_factory=dict)
    """Seconds of ``encoder_s`` in which no unit was in the VAE, by cause: an activity, or ``unit`` if it had no unit."""

    waited_s: float = 0.0
    """Seconds that the encoder's process has waited before it made failed requests again."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name. The fields of ``counts`` stand beside the others."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "counts"}
        return values | self.counts.to_json()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> UnitReport:
        """The report that ``to_json`` wrote."""
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name != "counts"}
        return cls(**own, counts=Counts.from_json(values))


class UnitHeartbeat(TypedDict):
    """How far a unit in flight is."""

    samples: int
    captions: int
    frames: int
    windows: int
    rejects: dict[str, int]
    """Number of rejects by ``stage/reason``."""
    share: float | None
    """Share of the unit's items that are done, 0 to 1; None if their number is not known."""


class Heartbeat(TypedDict):
    """The state of one encoder. A plain dict, so that it can be sent as JSON."""

    encoder: str
    """Name of the encoder."""
    confinement: str
    """Confinement of its decoders, with the attacks that are possible in spite of it."""
    encoder_s: float
    """Seconds since it became ready."""
    idle_s: dict[str, float]
    """Idle seconds by cause, as in ``UnitReport``."""
    waits: list[str]
    """Phrases about the requests that it waits to make again, as of ``storage.drivers.waits``."""
    waited_s: float
    """Seconds of all such waits of its process."""
    units: dict[str, UnitHeartbeat]
    """The units in flight by name."""


class Heartbeats:
    """The link between a job's executor and its progress: newest heartbeats one way, a request to stop the other way.

    An executor connects it; progress reads it. ``say`` prints a line for the user.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._read: Callable[[], list[Heartbeat]] = list
        self._stop: Callable[[], None] = lambda: None
        self.say = say

    def connect(self, read: Callable[[], list[Heartbeat]], stop: Callable[[], None]) -> None:
        """Get heartbeats from ``read`` from now on. ``stop`` asks all encoders to end their units early."""
        self._read = read
        self._stop = stop

    def stop(self) -> None:
        """Ask all encoders to end their units early, because too many items are rejected. They may take seconds."""
        self._stop()

    def latest(self) -> list[Heartbeat]:
        """The newest heartbeat of every running encoder; empty until an executor has connected."""
        return self._read()

"""What an encoder tells its driver: a report for each unit, and a heartbeat in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Heartbeat = dict[str, Any]
"""What an encoder says between reports: see ``EncoderCounters.pulse``."""

Watch = Callable[[Callable[[], Iterable[Heartbeat]]], None]
"""Takes what tells what the encoders are doing."""


@dataclass(kw_only=True, slots=True)
class UnitReport:
    """What became of one unit in this job; the only thing that goes back to the driver."""

    unit: str
    outcome: str
    """``committed``, ``lost`` (another attempt was first), ``already`` (nothing to do) or ``left`` (to another job)."""
    samples: int = 0
    frames: int = 0
    skips: dict[str, int] = dataclasses.field(default_factory=dict)
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    size_bytes: int = 0
    ended_s: float = 0.0
    """Unix time."""
    wall_s: float = 0.0
    encode_s: float = 0.0
    """In the VAE."""
    activities: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds by ``occupancy.Stage``, in sum ``wall_s``."""
    encoder: str = ""
    """Who did it: node and process."""
    encoder_s: float = 0.0
    """Since that encoder was ready,"""
    idle_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """and what of it no unit was in its VAE, by cause: ``Stage``, or ``unit`` where it had none."""

    @property
    def windows(self) -> int:
        """Planned windows accounted for."""
        return self.samples + sum(self.skips.values()) + sum(self.rejects.values())

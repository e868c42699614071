"""How many samples, skips and rejects a unit, an encoder or a job has made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """What became of a unit's windows."""

    samples: int = 0
    frames: int = 0
    skips: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    """By ``stage/reason``."""

    @property
    def windows(self) -> int:
        """Accounted for."""
        return self.samples + self.skips.total() + self.rejects.total()

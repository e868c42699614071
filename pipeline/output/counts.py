"""Counts of what windows became, for a unit, an encoder, a job or an output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Counts:
    """Number of samples, skips and rejects, with the frames and bytes of the samples. ``a + b`` adds every field."""

    samples: int = 0
    """Number of samples."""
    frames: int = 0
    """Number of frames of the samples' clips."""
    captions: int = 0
    """Number of samples with a caption that is not empty."""
    skips: Counter[str] = field(default_factory=Counter)
    """Number of skips by reason."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Number of rejects by ``stage/reason``."""
    size_bytes: int = 0
    """Size in bytes of the committed tars."""

    @property
    def windows(self) -> int:
        """Number of windows that are accounted for."""
        return self.samples + self.skips.total() + self.rejects.total()

    def __add__(self, other: Counts) -> Counts:
        """The sum. Another thread may be adding to ``other`` at the same time."""
        return Counts(
            samples=self.samples + other.samples,
            frames=self.frames + other.frames,
            captions=self.captions + other.captions,
            # copied first: a copy is atomic, an iteration over a growing Counter is not
            skips=self.skips + Counter(other.skips),
            rejects=self.rejects + Counter(other.rejects),
            size_bytes=self.size_bytes + other.size_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return {
            "samples": self.samples,
            "frames": self.frames,
            "captions": self.captions,
            "skips": dict(self.skips),
            "rejects": dict(self.rejects),
            "size_bytes": self.size_bytes,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """The counts that ``to_json`` wrote. ``values`` may have other keys as well."""
        return cls(
            samples=values["samples"],
            frames=values["frames"],
            captions=values.get("captions", 0),  # records of earlier programs have no such count
            skips=Counter(values["skips"]),
            rejects=Counter(values["rejects"]),
            size_bytes=values["size_bytes"],
        )

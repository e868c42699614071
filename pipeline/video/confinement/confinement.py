"""``Confinement``: what keeps decoding children of one server from the rest of the machine, as its first child found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

MEASURES = {
    "landlock": "Landlock",
    "filter": "a system-call filter",
    "user": "another user",
    "network": "a namespace without network",
    "capabilities": "no capabilities",
    "privileges": "no new privileges",
    "undumpable": "undumpable children",
    "encoder": "an undumpable encoder",
}
"""Measures against a child, in the order in which they are named, with their names in texts."""

ATTACKS = {
    "secrets": "read files that only this user may read",
    "files": "read files that every user may read",
    "writes": "write or change files",
    "encoder": "read the encoder's environment and memory",
    "processes": "read other processes' environment and memory",
    "signals": "end other processes",
    "network": "reach the network",
    "sockets": "reach local sockets",
    "programs": "start programs and processes",
}
"""Attacks that a child tries before it gets a video, with their names in texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confinement:
    """Measures that the kernel took, reasons for those that it did not, and what a child could do in spite of them."""

    taken: dict[str, str] = dataclasses.field(default_factory=dict)
    """Keys of ``MEASURES`` with a detail, which may be empty: Landlock's version, the user's number."""
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    """Keys of ``MEASURES`` with the kernel's reason."""
    possible: tuple[str, ...] = tuple(ATTACKS)
    """Keys of ``ATTACKS`` that a child tried with success, or that could not be tried."""

    @property
    def is_complete(self) -> bool:
        """True if no attack is possible."""
        return not self.possible

    @property
    def attacks_text(self) -> str:
        """The attacks that are possible, as text."""
        return ", ".join(ATTACKS[name] for name in self.possible)

    @property
    def refusals_text(self) -> str:
        """Measures that this machine refuses, with reasons."""
        return ", ".join(f"{MEASURES[name]} ({reason})" for name, reason in self.refused.items())

    def __str__(self) -> str:
        taken = (
            ", ".join(" ".join([MEASURES[name], detail]).strip() for name, detail in self.taken.items()) or "nothing"
        )
        if self.is_complete:
            return f"decoders are confined by {taken}"
        why = f"; refused here: {self.refusals_text}" if self.refused else ""
        return f"decoders can {self.attacks_text}: they are confined by {taken}{why}"

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Confinement:
        """The value that ``to_json`` wrote."""
        return cls(taken=values["taken"], refused=values["refused"], possible=tuple(values["possible"]))

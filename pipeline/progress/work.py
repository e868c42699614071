"""The work of a job: how much each unit is, and the words for what becomes of it."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from pipeline.sources.formats import cost_of
from pipeline.sources.units import Unit


class Words(NamedTuple):
    """Words for what a job makes."""

    sample: str
    parts: str
    """Plural of what a sample has many of, and what ``Counts.frames`` counts."""
    captions: bool
    """True if it is worth saying how many samples have captions."""


CLIPS, STRINGS = Words("clip", "frames", True), Words("string", "tokens", False)


def work_by_unit(units: list[Unit]) -> dict[str, float]:
    """Return the work of each unit by name, where the average of its format is 1: bytes and rows do not compare."""
    costs: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for unit in units:
        costs[unit.format][unit.name] = cost_of(unit)
    work: dict[str, float] = {}
    for cost_by_unit in costs.values():
        average = sum(cost_by_unit.values()) / len(cost_by_unit)
        work |= {name: cost / average if average else 1.0 for name, cost in cost_by_unit.items()}
    return work

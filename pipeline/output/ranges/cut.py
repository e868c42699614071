"""Cuts the units of a plan into ranges. The rows of a range become parts of the index on their own.

The ranges follow from the plan alone. A plan that grows keeps almost all of its ranges, so the next index takes over
their parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.sources.units import Plan, Unit

UNITS_PER_RANGE = 1000
"""Number of units, without retries, in a full range."""

_Place = tuple[str, int]
"""Source and first ordinal, which units over the same items have in common."""


@dataclass(frozen=True, slots=True)
class RangeUnit:
    """A unit of a range, without the facts that only its encoder needs."""

    name: str
    revision: int
    """Revision of its metadata."""
    items: int
    """Number of its items within the range. Units with the same number are over the same items: one, and its retries."""
    retries: bool
    """True if the unit tries rejects again."""

    @property
    def path(self) -> str:
        """Path of its metadata."""
        return unit_metadata_path(self.name, self.revision)


@dataclass(frozen=True)
class IndexRange:
    """Units whose rows follow one another in the parts of the index that they make."""

    units: tuple[RangeUnit, ...]

    @cached_property
    def digest(self) -> str:
        """16 hex digits of a hash of the names and revisions of the units, which determine the rows."""
        text = "".join(f"{unit.name} {unit.revision}\n" for unit in self.units)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cut_into_ranges(plan: Plan, revisions: Mapping[str, int]) -> list[IndexRange]:
    """Cut a plan into ranges, sorted by their first unit. Every unit is in one range, together with those that retry it.

    ``revisions``: revision of the metadata of each unit that has one; 0 for others.

    The units that a generation of the plan adds are cut into full ranges. The rest is a small range, which is joined with
    all later small ones as soon as these have more units together. So there are few small ranges (about 10 at most, the
    logarithm of ``UNITS_PER_RANGE``), a small growth makes small ranges only, and full ranges stay as they are.
    """
    units_at: dict[_Place, list[Unit]] = {}
    for unit in sorted(plan.units, key=lambda unit: unit.generation):
        units_at.setdefault((unit.source, unit.start), []).append(unit)
    places_of: dict[int, list[_Place]] = {}
    for place, units in units_at.items():
        places_of.setdefault(units[0].generation, []).append(place)
    full: list[list[_Place]] = []
    small: list[list[_Place]] = []
    for _, places in sorted(places_of.items()):
        _add(places, full, small)
        while (first := _first_outgrown(small)) is not None:
            joined = [place for each in small[first:] for place in each]
            del small[first:]
            _add(joined, full, small)
    return [_range([units_at[place] for place in places], revisions) for places in sorted(full + small)]


def _add(places: Sequence[_Place], full: list[list[_Place]], small: list[list[_Place]]) -> None:
    """Cut places into full ranges, and one small range of what is left."""
    ordered = sorted(places)
    runs = [ordered[start : start + UNITS_PER_RANGE] for start in range(0, len(ordered), UNITS_PER_RANGE)]
    full += [run for run in runs if len(run) == UNITS_PER_RANGE]
    small += [run for run in runs if len(run) < UNITS_PER_RANGE]


def _first_outgrown(small: list[list[_Place]]) -> int | None:
    """Number of the first small range that has fewer units than all later ones together; None if there is none."""
    later = sum(map(len, small))
    for number, places in enumerate(small):
        later -= len(places)
        if len(places) < later:
            return number
    return None


def _range(units_at: list[list[Unit]], revisions: Mapping[str, int]) -> IndexRange:
    return IndexRange(
        tuple(
            RangeUnit(unit.name, revisions.get(unit.name, 0), items, bool(unit.retries))
            for items, units in enumerate(units_at)
            for unit in units
        )
    )

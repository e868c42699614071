"""A random but repeatable choice of a dataset's items, and what it says of all of them.

Units are drawn first, then items in each: for a remote tar or a Parquet manifest, opening is what costs. The
formulas are those of Cochran, *Sampling Techniques* (3rd ed., 1977): chapter 5 where every unit was visited, which makes
them strata, and chapter 11 (two stages, ratio to size) where units were drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import pyarrow as pa

from pipeline.recipe import Recipe
from pipeline.sources.formats import format_of
from pipeline.sources.item import Item
from pipeline.sources.units import Unit

ITEMS_PER_UNIT = 4
"""Looked at in each unit, where there are enough units: neighbours resemble each other, so few of many units tell most."""
Z_95 = 1.96
SEED = 0

Found = TypeVar("Found")


@dataclass(kw_only=True, slots=True)
class Visit(Generic[Found]):
    """A unit of which some or all items were looked at."""

    unit: Unit
    num_items: float = 0.0
    """Number of items in the unit; a guess from bytes if its format does not count them and it was not read whole."""
    found: list[Found] = field(default_factory=list)
    """What the items looked at came to."""

    @property
    def whole(self) -> bool:
        """Whether every item was looked at."""
        return len(self.found) == self.num_items


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """A sum over all items, and where it lies with 95 % confidence. Equal where every item was looked at."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Stratum(Generic[Found]):
    """Units of one source format, and the visits to some of them; for use when these are over."""

    units: list[Unit]
    visits: list[Visit[Found]]

    @property
    def counted(self) -> bool:
        """Whether the format counts items when it plans."""
        return all(format_of(unit).num_items(unit) is not None for unit in self.units)

    @property
    def exact(self) -> bool:
        """Whether every item of every unit was looked at."""
        return len(self.visits) == len(self.units) and all(visit.whole for visit in self.visits)

    @cached_property
    def sizes(self) -> list[float]:
        """Number of items of each unit: as planned or found, or from its bytes and those of the visited units."""
        if self.counted:
            return [extent(unit) for unit in self.units]
        found = {visit.unit.name: visit.num_items for visit in self.visits}
        per_byte = sum(found.values()) / max(1, sum(extent(visit.unit) for visit in self.visits))
        return [found.get(unit.name, extent(unit) * per_byte) for unit in self.units]

    @cached_property
    def weight(self) -> float:
        """How many items each item of a visited unit stands for."""
        return sum(self.sizes) / max(1.0, sum(visit.num_items for visit in self.visits))

    def total(self, measure: Callable[[Found], float]) -> tuple[float, float]:
        """The sum of a measure over all items, and the variance of that estimate."""
        visits = [visit for visit in self.visits if visit.found]
        values = [[measure(found) for found in visit.found] for visit in visits]
        of_units = [visit.num_items * sum(row) / len(row) for visit, row in zip(visits, values, strict=True)]
        value = self.weight * sum(of_units)
        if self.exact or not visits:
            return value, 0.0
        if len(self.visits) < len(self.units) and len(visits) > 1:
            extents = [extent(visit.unit) for visit in visits]
            ratio = sum(of_units) / sum(extents)
            squares = sum((y - ratio * x) ** 2 for y, x in zip(of_units, extents, strict=True))
            return value, self.weight**2 * len(visits) / (len(visits) - 1) * squares
        pooled = _variance([value for row in values for value in row])
        return value, self.weight**2 * sum(
            visit.num_items
            * max(0.0, visit.num_items - len(row))
            * (_variance(row) if len(row) > 1 else pooled)
            / len(row)
            for visit, row in zip(visits, values, strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Generic[Found]):
    """What was looked at, by source format."""

    strata: list[Stratum[Found]]

    @property
    def exact(self) -> bool:
        """Whether it is everything."""
        return all(stratum.exact for stratum in self.strata)

    @property
    def num_items(self) -> tuple[float, bool]:
        """All items, and whether that is a guess."""
        guessed = any(not stratum.counted and not stratum.exact for stratum in self.strata)
        return sum(sum(stratum.sizes) for stratum in self.strata), guessed

    @property
    def visits(self) -> list[Visit[Found]]:
        """To every unit that was opened."""
        return [visit for stratum in self.strata for visit in stratum.visits]

    @property
    def found(self) -> list[Found]:
        """Of every item looked at."""
        return [found for visit in self.visits for found in visit.found]

    def total(self, measure: Callable[[Found], float]) -> Total:
        """A measure summed over all items; never less than what was seen."""
        parts = [stratum.total(measure) for stratum in self.strata]
        value, margin = sum(v for v, _ in parts), Z_95 * math.sqrt(sum(variance for _, variance in parts))
        seen = sum(map(measure, self.found))
        return Total(value=value, low=max(seen, value - margin), high=value + margin)


def choose_units(units: list[Unit], budget: int | None) -> list[tuple[list[Unit], list[Unit]]]:
    """For each source format: its units, and those to visit for ``budget`` items (None: all), small ones first.

    Equal arguments give an equal choice.
    """
    by_format: dict[str, list[Unit]] = {}
    for unit in units:
        by_format.setdefault(unit.format, []).append(unit)
    if budget is None or _known_items(units) <= budget:
        return [(of_format, of_format) for of_format in by_format.values()]
    chosen = []
    for _, of_format in sorted(by_format.items()):
        count = min(len(of_format), max(2, round(budget / len(by_format) / ITEMS_PER_UNIT)))
        drawn = random.Random(SEED).sample(of_format, count)
        chosen.append((of_format, sorted(drawn, key=lambda unit: format_of(unit).cost(unit))))
    return chosen


def extent(unit: Unit) -> float:
    """Size of a unit, known without opening its source: its number of items, or its cost if they are not counted."""
    num_items = format_of(unit).num_items(unit)
    return format_of(unit).cost(unit) if num_items is None else num_items


def visit_items(
    visits: list[Visit[Found]], budget: int | None, urls: dict[str, str], recipe: Recipe, columns: list[pa.Schema]
) -> Iterator[tuple[Visit[Found], Item]]:
    """Items of the visits' units: all, or a fair share of ``budget`` in each. Sets ``num_items`` of every visit.

    They are drawn at random if the format counts items; otherwise the unit is read from its beginning, and no further
    than needed.
    """
    for number, visit in enumerate(visits):
        share = None if budget is None else max(1, -(-budget // (len(visits) - number)))
        taken = 0
        for item in _some_items(visit, share, urls, recipe, columns[visit.unit.generation]):
            taken += 1
            yield visit, item
        if budget is not None:
            budget = max(0, budget - taken)


def _some_items(
    visit: Visit[Found], share: int | None, urls: dict[str, str], recipe: Recipe, columns: pa.Schema
) -> Iterator[Item]:
    unit = visit.unit
    url = urls.get(unit.source, unit.source)
    source_format = format_of(unit)
    count = source_format.num_items(unit)
    if count is None:
        yield from _first_items(visit, share, source_format.items(unit, url, recipe, columns))
        return
    visit.num_items = count
    if share is None or share >= count:
        yield from source_format.items(unit, url, recipe, columns)
        return
    drawn = set(random.Random(unit.name).sample(range(unit.start, unit.start + count), share))
    yield from source_format.some_items(unit, drawn, url, recipe, columns)


def _first_items(visit: Visit[Found], share: int | None, found: Iterator[Item]) -> Iterator[Item]:
    """The first items of a unit whose items are not counted. One more is read to know whether there are more."""
    taken = end_byte = 0
    for item in found:
        if taken == share:
            visit.num_items = max(taken + 1, taken * extent(visit.unit) / end_byte)
            return
        taken, end_byte = taken + 1, item.end_byte
        yield item
    visit.num_items = taken


def _known_items(units: list[Unit]) -> float:
    """Number of items in the units; infinity if one of them is not counted."""
    counts = [format_of(unit).num_items(unit) for unit in units]
    return sum(math.inf if count is None else count for count in counts)


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)

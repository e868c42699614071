"""A random but repeatable sample of a dataset's items, and totals over all items estimated from it.

Units are drawn first, then items in each, because opening a remote tar or a Parquet manifest is what takes time. The
formulas are from Cochran, *Sampling Techniques* (3rd ed., 1977): chapter 5 (stratified sampling) if every unit was opened,
chapter 11 (two stages, ratio to size) if units were drawn.
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
"""Items to sample per unit if there are enough units. Items of a unit resemble each other, so a few of each suffice."""
Z_95 = 1.96
"""Half width of a 95 % confidence interval, in standard deviations."""
SEED = 0

Observation = TypeVar("Observation")


@dataclass(kw_only=True, slots=True)
class SampledUnit(Generic[Observation]):
    """A unit of which some or all items were sampled."""

    unit: Unit
    num_items: float = 0.0
    """Number of its items; estimated from bytes if its format does not count them and it was not read to its end."""
    observations: list[Observation] = field(default_factory=list)
    """One observation per sampled item."""

    @property
    def is_complete(self) -> bool:
        """True if every item was sampled."""
        return len(self.observations) == self.num_items


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatedTotal:
    """A sum over all items, with its 95 % confidence interval. All three are equal if every item was sampled."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FormatSample(Generic[Observation]):
    """Sample of the units of one source format. Read its properties only when all sampled units have been read."""

    units: list[Unit]
    """All units of the format."""
    sampled_units: list[SampledUnit[Observation]]

    @property
    def is_counted(self) -> bool:
        """True if the format counts items when it plans."""
        return all(format_of(unit).num_items(unit) is not None for unit in self.units)

    @property
    def is_complete(self) -> bool:
        """True if every item of every unit was sampled."""
        return len(self.sampled_units) == len(self.units) and all(sampled.is_complete for sampled in self.sampled_units)

    @cached_property
    def unit_sizes(self) -> list[float]:
        """Number of items of each unit: as planned or read, or estimated from its bytes and those of the sampled units."""
        if self.is_counted:
            return [known_size(unit) for unit in self.units]
        read = {sampled.unit.name: sampled.num_items for sampled in self.sampled_units}
        per_byte = sum(read.values()) / max(1, sum(known_size(sampled.unit) for sampled in self.sampled_units))
        return [read.get(unit.name, known_size(unit) * per_byte) for unit in self.units]

    @cached_property
    def weight(self) -> float:
        """Number of items of the format for each item of a sampled unit."""
        return sum(self.unit_sizes) / max(1.0, sum(sampled.num_items for sampled in self.sampled_units))

    def total(self, measure: Callable[[Observation], float]) -> tuple[float, float]:
        """Estimate the sum of a measure over all items; returns the estimate and its variance."""
        sampled_units = [sampled for sampled in self.sampled_units if sampled.observations]
        values = [[measure(observation) for observation in sampled.observations] for sampled in sampled_units]
        unit_totals = [
            sampled.num_items * sum(row) / len(row) for sampled, row in zip(sampled_units, values, strict=True)
        ]
        total = self.weight * sum(unit_totals)
        if self.is_complete or not sampled_units:
            return total, 0.0
        if len(self.sampled_units) < len(self.units) and len(sampled_units) > 1:
            known_sizes = [known_size(sampled.unit) for sampled in sampled_units]
            ratio = sum(unit_totals) / sum(known_sizes)
            squares = sum((y - ratio * x) ** 2 for y, x in zip(unit_totals, known_sizes, strict=True))
            return total, self.weight**2 * len(sampled_units) / (len(sampled_units) - 1) * squares
        pooled = _variance([value for row in values for value in row])
        return total, self.weight**2 * sum(
            sampled.num_items
            * max(0.0, sampled.num_items - len(row))
            * (_variance(row) if len(row) > 1 else pooled)
            / len(row)
            for sampled, row in zip(sampled_units, values, strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Generic[Observation]):
    """Sample of a dataset, with one part per source format."""

    formats: list[FormatSample[Observation]]

    @property
    def is_complete(self) -> bool:
        """True if every item was sampled."""
        return all(part.is_complete for part in self.formats)

    @property
    def num_items(self) -> tuple[float, bool]:
        """Number of all items, and whether it is an estimate."""
        estimated = any(not part.is_counted and not part.is_complete for part in self.formats)
        return sum(sum(part.unit_sizes) for part in self.formats), estimated

    @property
    def sampled_units(self) -> list[SampledUnit[Observation]]:
        """Every unit that was opened."""
        return [sampled for part in self.formats for sampled in part.sampled_units]

    @property
    def observations(self) -> list[Observation]:
        """The observations of all sampled items."""
        return [observation for sampled in self.sampled_units for observation in sampled.observations]

    def total(self, measure: Callable[[Observation], float]) -> EstimatedTotal:
        """Estimate the sum of a measure over all items; its lower bound is at least the sum over the sampled ones."""
        parts = [part.total(measure) for part in self.formats]
        value, margin = sum(v for v, _ in parts), Z_95 * math.sqrt(sum(variance for _, variance in parts))
        observed = sum(map(measure, self.observations))
        return EstimatedTotal(value=value, low=max(observed, value - margin), high=value + margin)


def choose_units(units: list[Unit], budget: int | None) -> list[tuple[list[Unit], list[Unit]]]:
    """Choose units to sample ``budget`` items from (None: all units), small ones first.

    Returns for each source format all its units and the chosen ones. Equal arguments give an equal choice.
    """
    by_format: dict[str, list[Unit]] = {}
    for unit in units:
        by_format.setdefault(unit.format, []).append(unit)
    if budget is None or _known_items(units) <= budget:
        return [(of_format, of_format) for of_format in by_format.values()]
    choices = []
    for _, of_format in sorted(by_format.items()):
        count = min(len(of_format), max(2, round(budget / len(by_format) / ITEMS_PER_UNIT)))
        chosen = random.Random(SEED).sample(of_format, count)
        choices.append((of_format, sorted(chosen, key=lambda unit: format_of(unit).cost(unit))))
    return choices


def known_size(unit: Unit) -> float:
    """Size of a unit that is known without opening its source: its number of items, or its bytes if not counted."""
    num_items = format_of(unit).num_items(unit)
    return format_of(unit).cost(unit) if num_items is None else num_items


def draw_items(
    sampled_units: list[SampledUnit[Observation]],
    budget: int | None,
    urls: dict[str, str],
    recipe: Recipe,
    columns: list[pa.Schema],
) -> Iterator[tuple[SampledUnit[Observation], Item]]:
    """Yield items of the units: all, or an equal share of ``budget`` from each. Sets ``num_items`` of every unit.

    Items are drawn at random if the format counts them. Otherwise the unit is read from its beginning, and no further
    than needed.
    """
    for number, sampled in enumerate(sampled_units):
        share = None if budget is None else max(1, -(-budget // (len(sampled_units) - number)))
        taken = 0
        for item in _draw_from_unit(sampled, share, urls, recipe, columns[sampled.unit.generation]):
            taken += 1
            yield sampled, item
        if budget is not None:
            budget = max(0, budget - taken)


def _draw_from_unit(
    sampled: SampledUnit[Observation], share: int | None, urls: dict[str, str], recipe: Recipe, columns: pa.Schema
) -> Iterator[Item]:
    unit = sampled.unit
    url = urls.get(unit.source, unit.source)
    source_format = format_of(unit)
    count = source_format.num_items(unit)
    if count is None:
        yield from _first_items(sampled, share, source_format.items(unit, url, recipe, columns))
        return
    sampled.num_items = count
    if share is None or share >= count:
        yield from source_format.items(unit, url, recipe, columns)
        return
    drawn = set(random.Random(unit.name).sample(range(unit.start, unit.start + count), share))
    yield from source_format.some_items(unit, drawn, url, recipe, columns)


def _first_items(sampled: SampledUnit[Observation], share: int | None, all_items: Iterator[Item]) -> Iterator[Item]:
    """Yield the first items of a unit that is not counted; reads one more to find out whether there are more."""
    taken = end_byte = 0
    for item in all_items:
        if taken == share:
            sampled.num_items = max(taken + 1, taken * known_size(sampled.unit) / end_byte)
            return
        taken, end_byte = taken + 1, item.end_byte
        yield item
    sampled.num_items = taken


def _known_items(units: list[Unit]) -> float:
    """Return the number of items in the units; infinity if one of them is not counted."""
    counts = [format_of(unit).num_items(unit) for unit in units]
    return sum(math.inf if count is None else count for count in counts)


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)

"""A random but repeatable sample of a dataset's items, and totals over all items estimated from it.

Units are drawn first, then items in each, because opening a remote tar or a Parquet manifest is what takes time. The
formulas are from Cochran, *Sampling Techniques* (3rd ed., 1977): chapter 5 (stratified sampling) if every unit was opened,
chapter 11 (two stages, ratio to size) if units were drawn.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import pyarrow as pa

from pipeline.recipe import Recipe
from pipeline.sources.formats import items
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
    """Number of all its items; estimated from its bytes for a tar that was not read to its end."""
    observations: list[Observation] = field(default_factory=list)
    """One observation per sampled item."""

    @property
    def is_complete(self) -> bool:
        """True if every item was sampled."""
        return len(self.observations) == self.num_items

    @property
    def known_size(self) -> float:
        """Size that the plan knows without opening the unit: its number of items, or the bytes of a tar."""
        return self.unit.size if self.unit.stop is None else self.num_items


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
    def is_complete(self) -> bool:
        """True if every item of every unit was sampled."""
        return len(self.sampled_units) == len(self.units) and all(sampled.is_complete for sampled in self.sampled_units)

    @cached_property
    def unit_sizes(self) -> list[float]:
        """Number of items of each unit: as planned or read, or for other tars estimated from their bytes."""
        read = {sampled.unit.name: sampled.num_items for sampled in self.sampled_units}
        per_byte = sum(read.values()) / max(1, sum(sampled.unit.size for sampled in self.sampled_units))
        return [
            read.get(unit.name, unit.size * per_byte) if unit.stop is None else unit.stop - unit.start
            for unit in self.units
        ]

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
            known_sizes = [sampled.known_size for sampled in sampled_units]
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
        estimated = any(part.units[0].stop is None and not part.is_complete for part in self.formats if part.units)
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


def choose_units(units: list[Unit], budget: int | None) -> dict[str, list[Unit]]:
    """Choose units to sample ``budget`` items from (None: all units), by source format, small ones first.

    Equal units give equal choices.
    """
    by_format: dict[str, list[Unit]] = {}
    for unit in units:
        by_format.setdefault(unit.format, []).append(unit)
    if budget is None or _known_items(units) <= budget:
        return by_format
    chosen = {}
    for name, candidates in sorted(by_format.items()):
        count = min(len(candidates), max(2, round(budget / len(by_format) / ITEMS_PER_UNIT)))
        chosen[name] = sorted(random.Random(SEED).sample(candidates, count), key=lambda unit: unit.cost)
    return chosen


def draw_items(
    sampled_units: list[SampledUnit[Observation]],
    budget: int | None,
    urls: dict[str, str],
    recipe: Recipe,
    columns: list[pa.Schema],
) -> Iterator[tuple[SampledUnit[Observation], Item]]:
    """Yield items of the units: all, or an equal share of ``budget`` from each. Sets ``num_items`` of every unit.

    Items of folders and manifests are drawn at random. A tar is read from its beginning, and no further than needed.
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
    if unit.stop is None:
        yield from _first_items(sampled, share, items(unit, url, recipe, columns))
        return
    count = unit.stop - unit.start
    sampled.num_items = count
    if share is None or share >= count:
        yield from items(unit, url, recipe, columns)
        return
    drawn = set(random.Random(unit.name).sample(range(unit.start, unit.stop), share))
    if unit.format == "manifest":
        yield from (item for item in items(unit, url, recipe, columns) if item.ordinal in drawn)
        return
    for ordinal in sorted(drawn):  # one unit per item, so that no sidecar files of other items are read
        files = unit.files.cut(ordinal - unit.start, ordinal - unit.start + 1)
        alone = dataclasses.replace(unit, start=ordinal, stop=ordinal + 1, files=files)
        yield from items(alone, url, recipe, columns)


def _first_items(sampled: SampledUnit[Observation], share: int | None, all_items: Iterator[Item]) -> Iterator[Item]:
    """Yield the first items of a tar; reads one more to find out whether the tar has more."""
    taken = end_byte = 0
    for item in all_items:
        if taken == share:
            sampled.num_items = max(taken + 1, taken * sampled.unit.size / end_byte)
            return
        taken, end_byte = taken + 1, item.end_byte
        yield item
    sampled.num_items = taken


def _known_items(units: list[Unit]) -> float:
    return sum(math.inf if unit.stop is None else unit.stop - unit.start for unit in units)


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)

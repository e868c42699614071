"""The source formats: tar, manifest and folder."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import manifest as manifests
from pipeline.sources.folder import _folder_items, _folder_units
from pipeline.sources.item import Item
from pipeline.sources.manifest import _add_columns, _manifest_items
from pipeline.sources.tar import _tar_items
from pipeline.sources.units import Plan, Source, Unit, _unit


def items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    """Every item of a unit in order, also those that cannot be opened. SourceChanged if the source is not as planned.

    ``url``: where the unit's source is in this run. ``columns``: types of the user columns, as planned.
    """
    if unit.format == "tar":
        return _tar_items(unit, url, recipe)
    if unit.format == "manifest":
        return _manifest_items(unit, url, recipe, columns)
    return _folder_items(unit, url, recipe)


def plan_units(plan: Plan, sources: list[Source], recipe: Recipe) -> tuple[list[Unit], pa.Schema]:
    """The units of what the sources hold beyond a plan, and the user columns with those of the plan. Writes nothing.

    SourceChanged if a planned source or file is not what it was.
    """
    units: list[Unit] = []
    generation = len(plan.columns)
    # together with those of earlier generations, so that one index can hold them all
    columns = {field.name: field.type for schema in plan.columns for field in schema}
    columns |= {"meta": pa.string()} | _promoted(recipe)
    planned: dict[str, list[Unit]] = {}
    for unit in plan.units:
        if not unit.retries:
            planned.setdefault(unit.source, []).append(unit)
    for source in sources:
        before = planned.get(source.name, [])
        if source.format == "folder":
            units += _folder_units(source, before, recipe, generation)
        elif before:
            if source.facts != before[0].facts:
                raise SourceChanged.between(f"source {source.name}", before[0].facts, source.facts)
        elif source.format == "tar":
            units.append(_unit(source, generation, start=0, stop=None))
        else:
            survey = manifests.survey(source.url, recipe.unit_clips)
            _add_columns(columns, survey.schema, recipe, source)
            units += [
                _unit(source, generation, **dataclasses.asdict(part), header=survey.header) for part in survey.slices
            ]
    _check_unique(itertools.chain(plan.units, units))
    return units, pa.schema(list(columns.items()))


def _check_unique(units: Iterable[Unit]) -> None:
    names: dict[str, Unit] = {}
    for unit in units:
        other = names.setdefault(unit.name, unit)
        if other is not unit:
            raise ConfigError(f"two units would be named {unit.name}: of {unit.source} and {other.source}")


def _promoted(recipe: Recipe) -> dict[str, pa.DataType]:
    types = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    pairs = (column.partition(":") for column in recipe.columns)
    return {f"meta_{name}": types[kind] for name, _, kind in pairs}

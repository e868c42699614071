"""The registry of source formats, and what is done with sources of all formats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.folder import FolderFormat
from pipeline.sources.item import Item
from pipeline.sources.layouts.lance import LanceFormat
from pipeline.sources.layouts.lerobot import LeRobotFormat
from pipeline.sources.manifest import ManifestFormat
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.tar import TarFormat
from pipeline.sources.units import IMPORTED, STRINGS, Plan, Source, Unit

FORMATS: dict[str, SourceFormat] = {
    source_format.name: source_format
    for source_format in (TarFormat(), ManifestFormat(), LanceFormat(), LeRobotFormat(), FolderFormat())
}
"""Every format by name. The first one that recognizes a URL gets it; the last two ask the store."""
COUNTED = (STRINGS, IMPORTED)
"""Formats of units that are not read by any of these, and whose items are counted when they are planned."""


def recognize(url: str) -> SourceFormat | None:
    """The format of a URL; None if no format recognizes it."""
    return next((source_format for source_format in FORMATS.values() if source_format.recognizes(url)), None)


def format_of(part: Source | Unit) -> SourceFormat:
    """The format of a source or a unit. ConfigError if this version does not know it."""
    try:
        return FORMATS[part.format]
    except KeyError:
        raise ConfigError(
            f"'{part.name}' has the source format '{part.format}', which this version does not know; "
            f"it knows {', '.join(FORMATS)}"
        ) from None


def num_items_of(unit: Unit) -> int | None:
    """Number of items in a unit, or of strings in a unit of a layer; None if only reading the source tells."""
    return len(unit.ordinals) if unit.format in COUNTED else format_of(unit).num_items(unit)


def cost_of(unit: Unit) -> int:
    """How much work a unit is, in a measure that compares units of its format."""
    return len(unit.ordinals) if unit.format in COUNTED else format_of(unit).cost(unit)


def items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    """Yield every item of a unit in order, faulty ones included. SourceChanged if the source is not as planned.

    ``url``: where the unit's source is in this run. ``columns``: types of the user columns, as planned.
    """
    return format_of(unit).items(unit, url, recipe, columns)


def plan_units(
    plan: Plan, sources: list[Source], recipe: Recipe, say: Callable[[str], None] | None = None
) -> tuple[list[Unit], pa.Schema]:
    """New units for what the sources hold beyond ``plan``, and the user columns of the plan and the sources.

    Writes nothing. ``say`` prints what planning noticed. SourceChanged if a planned source or file has changed.
    """
    units: list[Unit] = []
    # start with the columns of earlier generations, so that one index can hold them all
    columns = {field.name: field.type for schema in plan.columns for field in schema}
    columns |= {"meta": pa.string()} | _promoted_columns(recipe)
    fixed = set(columns)  # rows of earlier generations have these types
    untyped: set[str] = set()
    planned: dict[str, list[Unit]] = {}
    for unit in plan.units:
        if not unit.retries:
            planned.setdefault(unit.source, []).append(unit)
    for source in sources:
        new = format_of(source).plan(source, planned.get(source.name, []), recipe, len(plan.columns))
        units += new.units
        _add_columns(columns, new, source, fixed, untyped)
        if say is not None:
            for note in (*(source.notes if new.units else ()), *new.notes):
                say(f"note: {note}")
    if not units and not plan.units:
        raise ConfigError("there is nothing to encode: the sources have no rows and no files")
    _check_unique_names(itertools.chain(plan.units, units))
    return units, pa.schema(list(columns.items()))


def _add_columns(
    columns: dict[str, pa.DataType], new: NewUnits, source: Source, fixed: set[str], untyped: set[str]
) -> None:
    """Add a source's own columns to those of the other sources. ConfigError if no type holds the values of both.

    Null gives way to every type, and integers to floats. fixed: columns of which earlier generations have rows.
    untyped: columns that can also be read as text in all sources so far.
    """
    for field in new.columns:
        name = f"meta_{field.name}"
        before = columns.get(name, pa.null())
        if pa.types.is_null(before) and new.any_column_can_be_text and name not in fixed:
            untyped.add(name)
        common = _common_type(before, field.type)
        if common is None and name not in fixed:
            old_text = before == pa.string() or name in untyped
            new_text = field.type == pa.string() or new.any_column_can_be_text
            common = pa.string() if old_text and new_text else None
        if common is None:
            raise ConfigError(
                f"column '{field.name}' is {field.type} in {source.name} and {before} in another source; "
                "give both the same type"
            )
        columns[name] = common
        if not new.any_column_can_be_text and not pa.types.is_null(field.type):
            untyped.discard(name)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of two types of numbers, or of null and another type; None if there is none."""
    try:
        schemas = [pa.schema([("column", type_)]) for type_ in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return None


def _check_unique_names(units: Iterable[Unit]) -> None:
    by_name: dict[str, Unit] = {}
    for unit in units:
        other = by_name.setdefault(unit.name, unit)
        if other is not unit:
            raise ConfigError(f"two units have the name {unit.name}: one of {unit.source} and one of {other.source}")


def _promoted_columns(recipe: Recipe) -> dict[str, pa.DataType]:
    """Columns for the fields of JSON sidecar files that the recipe names."""
    types = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    pairs = (column.partition(":") for column in recipe.columns)
    return {f"meta_{name}": types[type_name] for name, _, type_name in pairs}

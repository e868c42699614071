"""The plan of an output: its units, frozen when they are planned, and which of them are committed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa

from pipeline.errors import ConfigError, IntegrityError
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.recipe import Recipe
from pipeline.sources.file_table import FILE_TYPE, Files
from pipeline.sources.formats import plan_units
from pipeline.sources.units import Plan, Source, Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import (
    parquet_metadata,
    parquet_writer,
    read_parquet,
    row_groups,
    schema_from_text,
    schema_to_text,
    write_parquet,
)
from pipeline.storage.store import Store

UNITS_PER_ROW_GROUP = 1000
"""Number of units that are Python objects at a time while a plan is written or read."""

COLUMNS = "columns"
"""Key of a plan's metadata under which the types of the user columns are."""

UNIT_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("source", pa.string()),
        ("format", pa.string()),
        ("generation", pa.int32()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("byte_start", pa.int64()),
        ("byte_stop", pa.int64()),
        ("header", pa.string()),
        ("row_start", pa.int64()),
        ("row_stop", pa.int64()),
        ("details", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("files", pa.list_(FILE_TYPE)),
        ("retries", pa.list_(pa.struct([("ordinal", pa.int64()), ("windows", pa.list_(pa.int32()))]))),
    ]
)

_GROUPED_RETRIES = pa.list_(
    pa.struct([("ordinal", pa.int64()), ("windows", pa.list_(pa.int32())), ("groups", pa.list_(pa.string()))])
)
"""Type of ``retries`` in a generation that retries windows of groups of buckets."""


def freeze_plan(store: Store, sources: list[Source], recipe: Recipe, say: Callable[[str], None] | None = None) -> Plan:
    """Record a new generation of the plan for what the sources have gained, if anything; the whole plan.

    ``say`` prints what planning noticed. Safe to call again. SourceChanged if a planned source or file has changed.
    """
    while True:
        plan = read_plan(store)
        units, columns = plan_units(plan, sources, recipe, say)
        if not units:
            return plan
        freeze_generation(store, units, columns, len(plan.columns))
        # read the plan back, since another job may have recorded this generation first


def preview_plan(store: Store, sources: list[Source], recipe: Recipe, say: Callable[[str], None] | None = None) -> Plan:
    """The plan that ``freeze_plan`` would record. Writes nothing."""
    plan = read_plan(store)
    units, columns = plan_units(plan, sources, recipe, say)
    return Plan(units=plan.units + units, columns=[*plan.columns, columns]) if units else plan


def freeze_generation(
    store: Store, units: list[Unit], columns: pa.Schema, generation: int, facts: Mapping[str, str] | None = None
) -> None:
    """Record a generation of units, unless another job has recorded it first. ``facts``: see ``generation_facts``."""
    schema = UNIT_SCHEMA
    if any(retry.groups for unit in units for retry in unit.retries):
        schema = schema.set(schema.get_field_index("retries"), pa.field("retries", _GROUPED_RETRIES))
    schema = schema.with_metadata({COLUMNS: schema_to_text(columns)} | dict(facts or {}))
    with store.scratch() as scratch:
        with parquet_writer(scratch, schema) as writer:
            for start in range(0, len(units), UNITS_PER_ROW_GROUP):
                writer.write_table(_to_table(units[start : start + UNITS_PER_ROW_GROUP], schema))
        _check_readable(scratch.read_bytes(), units, columns)
        store.put_new(plan_path(generation), scratch)
    failpoint(Failpoint.PLAN_RECORDED)


def _check_readable(content: bytes, units: list[Unit], columns: pa.Schema) -> None:
    """ConfigError unless the recorded units and columns can be read again: a plan that cannot ends every later job."""
    try:
        read = (unit for table in row_groups(content) for unit in _from_table(table))
        same = (
            all(one == other for one, other in zip(read, units, strict=True))
            and schema_from_text(schema_to_text(columns)) == columns
        )
        read_parquet(write_parquet(columns.empty_table()))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"the plan cannot be recorded: {str(error)[:200]}; leave out columns of unusual types, or write them as text"
        ) from error
    if not same:
        raise ConfigError("the plan cannot be recorded: its names or columns change when they are written; rename them")


def read_plan(store: Store) -> Plan:
    """Read every generation that is recorded so far."""
    units: list[Unit] = []
    columns: list[pa.Schema] = []
    while True:
        try:
            content = store.get(plan_path(len(columns)))
        except FileNotFoundError:
            return Plan(units=units, columns=columns)
        with _damage_named(store, len(columns)):
            for table in row_groups(content):
                units += _from_table(table)
            columns.append(schema_from_text(parquet_metadata(content)[COLUMNS]))


def generation_facts(store: Store, generation: int) -> dict[str, str]:
    """The notes of a generation of the plan beside its units: the ``facts`` that it was recorded with."""
    content = store.get(plan_path(generation))
    with _damage_named(store, generation):
        return {name: value for name, value in parquet_metadata(content).items() if name != COLUMNS}


@contextlib.contextmanager
def _damage_named(store: Store, generation: int) -> Iterator[None]:
    """Replace the errors that a damaged generation of the plan raises by an IntegrityError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{store.url}/{plan_path(generation)} is damaged ({str(error).splitlines()[0][:200]}): restore it from a copy"
        ) from error


def plan_path(generation: int) -> str:
    """Path of a generation of the plan."""
    return f"plan/{generation:04d}.parquet"


def _to_table(units: list[Unit], schema: pa.Schema) -> pa.Table:
    rows = [unit.without_files() for unit in units]
    table = pa.Table.from_pylist(rows, schema=pa.schema([column for column in schema if column.name != "files"]))
    files = Files.concat(unit.files for unit in units).rows.combine_chunks()
    offsets = pa.array([0, *itertools.accumulate(len(unit.files) for unit in units)], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, files, type=schema.field("files").type)
    return (
        table.append_column(schema.field("files"), lists).select(schema.names).replace_schema_metadata(schema.metadata)
    )


def _from_table(table: pa.Table) -> Iterator[Unit]:
    lists = table["files"].combine_chunks()
    offsets, files = lists.offsets.to_pylist(), Files(pa.chunked_array([lists.values], FILE_TYPE))
    rows = table.drop_columns(["files"]).to_pylist()
    for row, (start, stop) in zip(rows, itertools.pairwise(offsets), strict=True):
        yield Unit.with_files(row, files.slice(start, stop) if stop > start else Files())


def committed_units(store: Store) -> set[str]:
    """Names of the committed units, from one listing. Listings may lag: a name that is missing may be committed."""
    return set(newest_unit_metadata(store))


def missing_units(store: Store, plan: Plan) -> list[Unit]:
    """Units of the plan that are not committed, as far as a listing shows."""
    committed = committed_units(store)
    return [unit for unit in plan.units if unit.name not in committed]

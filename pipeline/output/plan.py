"""Which units exist, frozen at planning; which are committed, and which are left."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import manifest as manifests
from pipeline.sources.discovery import Kind, Source
from pipeline.sources.file_table import FILE_TYPE, Files
from pipeline.storage.failpoints import Step, reached
from pipeline.storage.parquet import parquet_writer, row_groups
from pipeline.storage.store import FileFacts, Store, canonical

UNITS_AT_ONCE = 1000
"""In a row group of the plan: what is rows of Python's while it is written or read."""

UNIT_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("generation", pa.int32()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("byte_start", pa.int64()),
        ("byte_stop", pa.int64()),
        ("header", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("files", pa.list_(FILE_TYPE)),
        ("retries", pa.list_(pa.struct([("ordinal", pa.int64()), ("windows", pa.list_(pa.int32()))]))),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """An item to try again."""

    ordinal: int
    windows: tuple[int, ...]
    """Those that were rejected; none where the item was rejected as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The items whose samples go to one output shard."""

    name: str
    source: str
    kind: Kind
    generation: int
    start: int
    """Ordinal of the first item in its source."""
    stop: int | None
    """Ordinal after the last item; None to the end of a tar."""
    byte_start: int = 0
    byte_stop: int = 0
    """Of the rows in a text manifest."""
    header: str = ""
    """First line of a CSV manifest."""
    size: int = 0
    etag: str = ""
    files: Files = dataclasses.field(default_factory=Files)
    retries: tuple[Retry, ...] = ()
    """Where not empty: of the items from ``start`` to ``stop``, only these."""

    @property
    def facts(self) -> FileFacts:
        """Of the tar or manifest."""
        return FileFacts(size=self.size, etag=self.etag)

    @property
    def cost(self) -> int:
        """A guess at how long it takes, to start long units early; comparable within one kind of source."""
        return self.size if self.kind == "tar" else self.files.size_bytes or (self.stop or 0) - self.start

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a row of the plan."""
        return self.without_files() | {"files": self.files.rows.to_pylist()}

    def without_files(self) -> dict[str, Any]:
        """The same but for the files, which may be many."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        return values | {"retries": [{"ordinal": r.ordinal, "windows": list(r.windows)} for r in self.retries]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Unit:
        """The unit that ``to_json`` wrote."""
        return cls.with_files(values, Files(pa.chunked_array([values["files"]], FILE_TYPE)))

    @classmethod
    def with_files(cls, values: dict[str, Any], files: Files) -> Unit:
        """The unit that ``without_files`` described, with its files."""
        retries = tuple(Retry(ordinal=r["ordinal"], windows=tuple(r["windows"])) for r in values["retries"])
        return cls(**values | {"files": files, "retries": retries})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every unit of an output, and the user columns of each generation."""

    units: list[Unit]
    columns: list[pa.Schema]


def freeze_plan(store: Store, sources: list[Source], recipe: Recipe) -> Plan:
    """The recorded plan, with a new generation for what the sources hold beyond it. Safe to call again.

    SourceChanged if a planned source or file is not what it was.
    """
    while True:
        plan = read_plan(store)
        units, columns = plan_units(plan, sources, recipe)
        if not units:
            return plan
        freeze_generation(store, units, columns, len(plan.columns))
        # read back: another job may have frozen this generation first


def foresee_plan(store: Store, sources: list[Source], recipe: Recipe) -> Plan:
    """The plan that ``freeze_plan`` would record; nothing is written."""
    plan = read_plan(store)
    units, columns = plan_units(plan, sources, recipe)
    return Plan(units=plan.units + units, columns=[*plan.columns, columns]) if units else plan


def freeze_generation(store: Store, units: list[Unit], columns: pa.Schema, generation: int) -> None:
    """Record a generation of units, unless another job has recorded it first."""
    schema = UNIT_SCHEMA.with_metadata({"columns": schema_to_text(columns)})
    with store.scratch() as scratch:
        with parquet_writer(scratch, schema) as writer:
            for start in range(0, len(units), UNITS_AT_ONCE):
                writer.write_table(_to_table(units[start : start + UNITS_AT_ONCE], schema))
        store.put_new(f"plan/{generation:04d}.parquet", scratch)
    reached(Step.PLAN_RECORDED)


def read_plan(store: Store) -> Plan:
    """Every generation recorded so far."""
    units: list[Unit] = []
    columns: list[pa.Schema] = []
    while True:
        try:
            content = store.get(f"plan/{len(columns):04d}.parquet")
        except FileNotFoundError:
            return Plan(units=units, columns=columns)
        for table in row_groups(content):
            units += _from_table(table)
        columns.append(schema_from_text(table.schema.metadata[b"columns"].decode()))


def _to_table(units: list[Unit], schema: pa.Schema) -> pa.Table:
    rows = [unit.without_files() for unit in units]
    table = pa.Table.from_pylist(rows, schema=pa.schema([column for column in schema if column.name != "files"]))
    files = Files.joined(unit.files for unit in units).rows.combine_chunks()
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
        yield Unit.with_files(row, files.cut(start, stop) if stop > start else Files())


def committed_units(store: Store) -> set[str]:
    """Names of the units that have a sidecar, from one listing. A name missing here may still be committed."""
    return {path.removeprefix("metadata/").removesuffix(".parquet") for path in store.list_files("metadata")}


def schema_to_text(schema: pa.Schema) -> str:
    """An Arrow schema as text, for metadata and arguments."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema that ``schema_to_text`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


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
        if source.kind == "folder":
            units += _folder_units(source, before, recipe, generation)
        elif before:
            if source.facts != before[0].facts:
                raise SourceChanged.between(f"source {source.name}", before[0].facts, source.facts)
        elif source.kind == "tar":
            units.append(_unit(source, generation, start=0, stop=None))
        else:
            survey = manifests.survey(source.url, recipe.unit_clips)
            _add_columns(columns, survey.schema, recipe, source)
            units += [
                _unit(source, generation, **dataclasses.asdict(part), header=survey.header) for part in survey.slices
            ]
    _check_unique(itertools.chain(plan.units, units))
    return units, pa.schema(list(columns.items()))


def _folder_units(source: Source, before: list[Unit], recipe: Recipe, generation: int) -> Iterator[Unit]:
    """Files that are in no unit yet, in runs; SourceChanged if one that is in a unit has changed."""
    planned = Files.joined(unit.files for unit in before)
    new, changed = source.files.beside(planned)
    if changed:
        was, found = changed
        raise SourceChanged.between(f"{canonical(source.url)}/{found.path}", was.facts, found.facts)
    first = len(planned)
    for start in range(0, len(new), recipe.unit_clips):
        files = new.cut(start, min(start + recipe.unit_clips, len(new)))
        yield _unit(source, generation, start=first + start, stop=first + start + len(files), files=files)


def _unit(source: Source, generation: int, *, start: int, stop: int | None, **fields: Any) -> Unit:
    stem = canonical(source.name if "://" in source.name else source.url).rpartition("/")[2].rpartition(".")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", (stem or source.name.rpartition("/")[2]).lower()).strip("-")[:40] or "unit"
    return Unit(
        name=unit_name(slug, source.name, start, stop, generation),
        source=source.name,
        kind=source.kind,
        generation=generation,
        start=start,
        stop=stop,
        size=source.facts.size,
        etag=source.facts.etag,
        **fields,
    )


def unit_name(slug: str, source: str, start: int, stop: int | None, generation: int) -> str:
    """A name that people recognise, made unique by the part of the source and the generation."""
    text = "\0".join(map(str, (source, start, stop, generation)))
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


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


def _add_columns(columns: dict[str, pa.DataType], schema: pa.Schema, recipe: Recipe, source: Source) -> None:
    """A manifest's own columns beside those of the other sources; ConfigError where two types clash."""
    taken = {
        manifests.path_column(schema.names, recipe, source.url),
        manifests.caption_column(schema.names, recipe, source.url),
    }
    for field in schema:
        if field.name in taken:
            continue
        name = f"meta_{field.name}"
        if columns.setdefault(name, field.type) != field.type:
            raise ConfigError(
                f"column '{field.name}' is {field.type} in {source.name} and {columns[name]} in another source; "
                "give both the same type"
            )

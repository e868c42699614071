"""Finds the committed rows that a request names, and the names that are not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.edit.request import Request
from pipeline.errors import ConfigError
from pipeline.loader.filters import Filter, WhereError, make_filter
from pipeline.output.dataset import read_dataset
from pipeline.output.edits.edits import MATCHED
from pipeline.output.index import newest_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.sources.units import Plan
from pipeline.storage.parquet import parquet_batches, parquet_schema
from pipeline.storage.store import Store

ROWS_AT_ONCE = 1 << 16
ITEM = ("source", "ordinal", "key")
"""Columns that identify an item that has a row."""

Row = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Selection:
    """The rows of edits that a request becomes."""

    rows: list[Row] = field(default_factory=list)
    """``id`` and item of each sample, or the columns that name whole items."""
    samples: int = 0
    """Number of committed samples that these rows name."""
    pending: list[str] = field(default_factory=list)
    """Names that no committed row has, but that units which are not committed may have."""
    missing: list[str] = field(default_factory=list)
    """Names that are not there."""


def select(store: Store, request: Request) -> Selection:
    """Find what a request names. ConfigError for a filter that cannot be used or that no sample passes."""
    plan = read_plan(store)
    newest = newest_unit_metadata(store)
    open_sources = {unit.source for unit in plan.units if unit.name not in newest}
    selection = Selection()
    items: dict[tuple[Any, ...], None] = {}
    found: set[tuple[tuple[str, Any], ...]] = set()
    shapes = {tuple(entry) for entry in request.entries}
    for table in _matching_rows(store, plan, newest, request):
        selection.samples += len(table) - table["shard"].null_count
        rows = table.select(["id", *MATCHED]).to_pylist()
        found |= {tuple((name, row[name]) for name in shape) for row in rows for shape in shapes}
        if request.items or request.whole_items:
            items |= dict.fromkeys(tuple(row[name] for name in ITEM) for row in rows)
        else:
            selection.rows += [{name: row[name] for name in ("id", *ITEM)} for row in rows]
    if request.where is not None and not selection.samples:
        raise ConfigError(f"no sample passes the filter '{request.where}'")
    selection.rows += [dict(zip(ITEM, item, strict=True)) for item in items]
    for entry in request.entries:
        _add_open(selection, entry, tuple(entry.items()) in found, open_sources)
    return selection


def _add_open(selection: Selection, entry: Row, found: bool, open_sources: set[str]) -> None:
    """Add an id or an item as the user named it, where rows that are not committed yet may have it."""
    shown = entry["id"] if "id" in entry else json.dumps(entry, ensure_ascii=False)
    may_come = bool(open_sources if entry.get("source") is None else entry["source"] in open_sources)
    is_sample = "id" in entry
    if found and (is_sample or not (may_come or set(entry) == {"source"})):
        return
    if found or may_come:
        selection.rows.append(entry)
    if not found:
        (selection.pending if may_come else selection.missing).append(shown)


def _matching_rows(store: Store, plan: Plan, newest: dict[str, str], request: Request) -> Iterator[pa.Table]:
    """Yield the committed rows that a request names: samples for a filter, rows of every outcome for ids and items."""
    schema = clip_rows(plan, read_dataset(store).recipe).schema
    where = None if request.where is None else _make_filter(request.where, schema)
    columns = schema if where else pa.schema([schema.field(name) for name in ("id", *MATCHED, "shard")])
    named = request.named()
    for table in _committed_rows(store, plan, newest, columns):
        if where is None:
            yield table.filter(named.is_removed(table))
            continue
        samples = table.filter(table["shard"].is_valid())
        try:
            yield samples.take(pa.array(where.matching_rows(samples)))
        except WhereError as error:
            raise ConfigError(str(error)) from error


def _make_filter(where: str, schema: pa.Schema) -> Filter:
    try:
        return make_filter(where, schema)
    except WhereError as error:
        raise ConfigError(str(error)) from error


def _committed_rows(store: Store, plan: Plan, newest: dict[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of the newest index and of the units that it does not cover, with the columns of a schema."""
    index = newest_index(store)
    covered = 0 if index is None else index.plan_generations
    paths = [] if index is None else [*index.samples, *index.rejects, *index.skips]
    paths += [newest[unit.name] for unit in plan.units if unit.generation >= covered and unit.name in newest]
    for path in paths:
        content = store.get(path)
        present = [name for name in schema.names if name in parquet_schema(content).names]
        for batch in parquet_batches(content, present, ROWS_AT_ONCE):
            columns = [
                batch[name].cast(schema.field(name).type)
                if name in present
                else pa.nulls(len(batch), schema.field(name).type)
                for name in schema.names
            ]
            yield pa.Table.from_arrays(columns, schema=schema)

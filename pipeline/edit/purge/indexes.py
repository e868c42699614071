"""Indexes in a purge: a new one without the purged samples, and what becomes of the earlier ones.

Earlier indexes hold captions and URIs of purged samples, and name tars that will be deleted. One that a tag names is written
again under its number; any other is replaced by a record of the purge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.dataset import read_dataset
from pipeline.output.edits.edits import Edits
from pipeline.output.edits.version import read_tag, tag_names
from pipeline.output.index import (
    Index,
    OutputTotals,
    PurgedIndex,
    index_path,
    last_index_number,
    newest_index,
    read_index_entry,
)
from pipeline.output.index_builder import compact_index, next_index_number
from pipeline.output.index_parts import OUTCOMES, clip_rows
from pipeline.output.plan import read_plan
from pipeline.output.purges.purged_rows import columns_to_look_at, has_purgeable_data
from pipeline.output.purges.record import Purge
from pipeline.output.ranges.build import put_parts
from pipeline.output.unit_metadata import (
    in_source_order,
    read_unit_metadata,
    unit_metadata_facts,
    unit_of,
)
from pipeline.sources.units import Plan
from pipeline.storage.concurrency import MapTasks
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ReplacedUnits:
    """The units that a purge has rewritten."""

    edits: Edits
    shards: Mapping[str, str | None]
    """The tar of each of these units by its name; None for a unit without samples."""
    metadata: Sequence[str]
    """Paths of their metadata."""

    def read_rows(self, store: Store) -> pa.Table | None:
        """Their samples, with all columns and new places; None without any."""
        tables = [read_parquet(store.get(path)).replace_schema_metadata(None) for path in self.metadata]
        samples = [table.filter(table["shard"].is_valid()) for table in tables]
        return pa.concat_tables(samples, promote_options="permissive").combine_chunks() if samples else None

    def are_in(self, store: Store, index: Index) -> bool:
        """Tell if an index names data that the purge takes: a tar that was replaced, or a row that was removed."""
        named = store.get(index.shards).decode().splitlines()
        if any(self.shards.get(unit_of(shard), shard) != shard for shard in named):
            return True
        return any(has_data(store, path, self.edits) for path in (*index.samples, *index.rejects, *index.skips))


def has_data(store: Store, path: str, edits: Edits) -> bool:
    """Tell if a part of an index has removed rows that still have data."""
    table = read_parquet(store.get(path), columns_to_look_at(edits))
    return bool(pc.any(has_purgeable_data(table, edits)).as_py())


def live_indexes(store: Store) -> Iterator[Index]:
    """Yield every index that was not purged, the newest first."""
    last = last_index_number(store)
    for number in range(-1 if last is None else last, -1, -1):
        entry = read_index_entry(store, number)
        if isinstance(entry, Index):
            yield entry


def purge_indexes(store: Store, purge: Purge, units: ReplacedUnits, map_tasks: MapTasks) -> None:
    """Make every index one without purged samples. Safe to call again."""
    number = take_number(store, purge)
    newest = newest_index(store)
    if newest is not None and units.are_in(store, newest):
        plan = plan_of(store, newest)
        row_format = clip_rows(plan, read_dataset(store).recipe)
        compact_index(store, plan, row_format, next_index_number(store), map_tasks)
    tagged = {read_tag(store, name).index for name in tag_names(store)}
    for index in live_indexes(store):
        if index.generation > number or not units.are_in(store, index):
            continue
        if index.generation in tagged:
            content = _without_purged(store, index, units).to_json()
        else:
            content = PurgedIndex(purge=purge.number, parts=index.files).to_json()
        store.put(index.path, content)
        failpoint(Failpoint.INDEX_PURGED)


def plan_of(store: Store, index: Index) -> Plan:
    """The generations of the plan that an index covers."""
    plan = read_plan(store)
    count = index.plan_generations
    return Plan(units=[unit for unit in plan.units if unit.generation < count], columns=plan.columns[:count])


def take_number(store: Store, purge: Purge) -> int:
    """Take a number among those of indexes, once in each purge.

    A job chooses the number of its index before it reads unit metadata, so an index that still names what this purge has
    replaced cannot come after this number.
    """
    last = last_index_number(store)
    record = PurgedIndex(purge=purge.number, parts=[])
    for number in range(-1 if last is None else last, -1, -1):
        if read_index_entry(store, number) == record:
            return number
    while True:
        number = next_index_number(store)
        if store.put_new(index_path(number), record.to_json()) or read_index_entry(store, number) == record:
            failpoint(Failpoint.INDEX_NUMBER_TAKEN)
            return number


def _without_purged(store: Store, index: Index, units: ReplacedUnits) -> Index:
    """The index with new parts where samples were purged or have moved: the same samples in the same order otherwise."""
    moved = units.read_rows(store)
    new_parts: dict[str, bytes] = {}
    names: dict[str, list[str]] = {}
    counts = dict.fromkeys(OUTCOMES, 0)
    for outcome in OUTCOMES:
        for number, path in enumerate(getattr(index, outcome)):
            content = store.get(path)
            table = read_parquet(content)
            left = _with_new_places(_drop_purged(table, units.edits), moved)
            counts[outcome] += len(left)
            name = path
            if not left.equals(table):
                name = f"{outcome}-{number:05d}.parquet"
                new_parts[name] = write_parquet(left.combine_chunks())
            if len(left) or (outcome == "samples" and number == 0):  # readers need the columns of a part
                names.setdefault(outcome, []).append(name)
    shards, totals = _totals(store, index)
    files = {name: content for name, content in new_parts.items() if name in names.get(name.partition("-")[0], [])}
    folder = put_parts(store, {**files, "shards.txt": "".join(f"{shard}\n" for shard in shards).encode()})
    changed: dict[str, Any] = {f"num_{outcome}": count for outcome, count in counts.items()}
    for outcome in OUTCOMES:
        changed[outcome] = [f"{folder}/{name}" if name in files else name for name in names.get(outcome, [])]
    return dataclasses.replace(index, ranges={}, shards=f"{folder}/shards.txt", totals=totals, **changed)


def _drop_purged(table: pa.Table, edits: Edits) -> pa.Table:
    return table.filter(pc.invert(has_purgeable_data(table, edits)))


def _with_new_places(table: pa.Table, replaced: pa.Table | None) -> pa.Table:
    """The rows of an index with those of rewritten units in place of their former selves."""
    if replaced is None or not len(table):
        return table
    new = replaced.select([name for name in table.schema.names if name in replaced.column_names])
    both = pa.concat_tables([table, new], promote_options="permissive").cast(table.schema)
    moved = pc.index_in(table["id"], value_set=new["id"].combine_chunks()).combine_chunks()
    in_place = pa.array(np.arange(len(table)), pa.int64())
    is_sample = table["shard"].is_valid().combine_chunks()
    rows = pc.if_else(pc.and_(is_sample, moved.is_valid()), pc.add(moved.cast(pa.int64()), len(table)), in_place)
    return both.take(rows).replace_schema_metadata(table.schema.metadata)


def _totals(store: Store, index: Index) -> tuple[list[str], OutputTotals]:
    """The shards, sorted, and the totals of the units of an index as they are now."""
    shards, totals = [], OutputTotals()
    for _, metadata in read_unit_metadata(store, in_source_order(plan_of(store, index))):
        facts = unit_metadata_facts(metadata)
        totals.add(facts)
        shards += [facts["shard"]] if "shard" in facts else []
    return sorted(shards), totals

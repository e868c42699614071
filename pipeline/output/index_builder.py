"""Compacts the metadata of all units into the index, range by range."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from pipeline.errors import IntegrityError, StoreError
from pipeline.output.index import Index, OutputTotals, PurgedIndex, last_index_number, newest_index, read_index_entry
from pipeline.output.index_parts import RowFormat
from pipeline.output.plan import missing_units
from pipeline.output.purges.record import newest_purge
from pipeline.output.purges.unit_purge import settle_units
from pipeline.output.ranges.build import build_range, put_parts
from pipeline.output.ranges.cut import IndexRange, cut_into_ranges
from pipeline.output.ranges.orphans import orphan_parts
from pipeline.output.ranges.record import RangeRecord, read_records
from pipeline.output.unit_metadata import newest_revisions, unit_metadata_path
from pipeline.sources.units import Plan
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store


def complete_index(store: Store, plan: Plan, row_format: RowFormat, map_tasks: MapTasks = map_in_process) -> Index:
    """Check that every unit is committed, and build the index if none covers the plan. StoreError if a unit is missing."""
    for unit in missing_units(store, plan):  # listings may lag, so these are looked up one by one
        if store.size(unit_metadata_path(unit.name)) is None:
            raise StoreError(f"unit {unit.name} is not committed; run the same command again")
    index = newest_index(store)
    if index is not None and index.covers(plan):
        return index
    covered = 0 if index is None else index.plan_generations
    settle_units(store, {unit.name for unit in plan.units if unit.generation >= covered})
    return build_index(store, plan, row_format, map_tasks)


def build_index(store: Store, plan: Plan, row_format: RowFormat, map_tasks: MapTasks = map_in_process) -> Index:
    """Compact the metadata of all units of the plan, unless an index covers as much; the index that covers the plan."""
    number = next_index_number(store)
    index = newest_index(store)
    if index is not None and index.covers(plan):
        return index
    return compact_index(store, plan, row_format, number, map_tasks)


def compact_index(
    store: Store, plan: Plan, row_format: RowFormat, number: int, map_tasks: MapTasks = map_in_process
) -> Index:
    """Compact the metadata of all units of the plan, and record the index under the next free number; what is recorded.

    ``number``: the next free number before any unit metadata was read. A purge takes a number after it has replaced unit
    metadata, so no index that names what the purge deletes can get a later number than the purge has. If another job has
    recorded an index that covers as much under the number, that one is returned. Raises IntegrityError if a committed
    shard is missing or has another size than its unit's metadata says.
    """
    outdated: list[str] = []
    while True:
        index = dataclasses.replace(_compact(store, plan, row_format, map_tasks), generation=number)
        _delete_outdated(store, outdated, index)
        if store.put_new(index.path, index.to_json()):
            failpoint(Failpoint.INDEX_RECORDED)
            return index
        recorded = read_index_entry(store, number)
        if isinstance(recorded, Index) and recorded.plan_generations >= index.plan_generations:
            is_other = recorded.plan_generations == index.plan_generations and recorded != index
            if is_other and newest_purge(store) is None:
                raise IntegrityError(f"{store.url}/{index.path} does not agree with the metadata of the units")
            return recorded
        outdated = index.files if isinstance(recorded, PurgedIndex) else []
        number = max(number + 1, next_index_number(store))


def _delete_outdated(store: Store, paths: Sequence[str], index: Index) -> None:
    """Delete files of an index that could not be recorded: they may have rows that a purge has just taken.

    Those that are also files of the new ``index``, or of any other, stay. What goes is of revisions that the purge has
    replaced, so no other job needs it for an index that it can still record.
    """
    wanted = set(paths) - set(index.files)
    for path in orphan_parts(store) if wanted else ():
        if path in wanted:
            store.delete(path)


def next_index_number(store: Store) -> int:
    """The number after the highest one that is taken, as far as a listing shows."""
    last = last_index_number(store)
    return 0 if last is None else last + 1


def _compact(store: Store, plan: Plan, row_format: RowFormat, map_tasks: MapTasks) -> Index:
    """Write the parts of an index of all units of the plan; the index, whose number is still open.

    ``map_tasks`` makes the parts of the ranges that no earlier index has made; here only names are joined. The index is
    the same bytes wherever the tasks run and in whichever order they end.
    """
    ranges = cut_into_ranges(plan, newest_revisions(store))
    records: dict[str, RangeRecord] = {}
    shards: list[str] = []
    listed = store.list_files("shards")
    for record in _records(store, ranges, row_format, map_tasks):
        _check_shards(store, record.shards, listed)
        shards += record.shards
        records[record.units] = dataclasses.replace(record, shards={})  # a million names are kept once
    names = "".join(f"{shard}\n" for shard in sorted(shards))
    folder = put_parts(store, {"shards.txt": names.encode()})
    return _joined([records[each.digest] for each in ranges], len(plan.columns), f"{folder}/shards.txt")


def _records(
    store: Store, ranges: Sequence[IndexRange], row_format: RowFormat, map_tasks: MapTasks
) -> Iterator[RangeRecord]:
    """Yield the record of every range, those that exist first, and make the parts of the others."""
    made = set()
    for each, record in read_records(store, ranges, row_format):
        made.add(each.digest)
        yield record
    missing = [each for each in ranges if each.digest not in made]
    yield from map(RangeRecord.from_json, map_tasks(partial(build_range, store, row_format), missing))


def _joined(records: Sequence[RangeRecord], plan_generations: int, shards: str) -> Index:
    """The index of ranges, without its number. Parts of samples are sorted by group and bucket, then by range."""
    totals = OutputTotals()
    for record in records:
        totals.merge(record.totals)
    parts = [(*part[:3], path) for record in records for part, path in zip(record.parts, record.paths, strict=True)]
    parts.sort(key=lambda part: part[:3])

    def paths(outcome: str) -> list[str]:
        return [path for found, _, _, path in parts if found == outcome]

    def num_rows(outcome: str) -> int:
        return sum(record.num_rows[outcome] for record in records)

    return Index(
        generation=0,
        plan_generations=plan_generations,
        ranges={record.units: record.folder for record in records},
        samples=paths("samples"),
        rejects=paths("rejects"),
        skips=paths("skips"),
        shards=shards,
        num_samples=num_rows("samples"),
        num_rejects=num_rows("rejects"),
        num_skips=num_rows("skips"),
        totals=totals,
    )


def _check_shards(store: Store, size_bytes: Mapping[str, int], listed: Mapping[str, int]) -> None:
    """Raise IntegrityError unless every shard has the given size. ``listed``: sizes as a listing shows them."""
    for shard, expected in size_bytes.items():
        found = listed.get(shard)
        if found is None:  # listings may lag behind
            found = store.size(shard)
        if found != expected:
            what = "it is missing" if found is None else f"found {found}"
            raise IntegrityError(f"{store.url}/{shard}: expected {expected} bytes, {what}")

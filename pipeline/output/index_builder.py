"""Compacts the metadata of all units into the index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError, StoreError
from pipeline.output.index import Index, OutputTotals, PurgedIndex, last_index_number, newest_index, read_index_entry
from pipeline.output.index_parts import OUTCOMES, PartWriter, RowFormat
from pipeline.output.plan import missing_units
from pipeline.output.purges.record import newest_purge, unfinished_purge
from pipeline.output.purges.unit_purge import settle_units
from pipeline.output.schema import ROW_ORDER
from pipeline.output.unit_metadata import (
    in_source_order,
    newest_unit_metadata,
    read_unit_metadata,
    unit_metadata_facts,
    unit_metadata_path,
    unit_of,
)
from pipeline.sources.units import Plan, Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from stvae.file_identity import sha256_digest

ROWS_AT_ONCE = 16_384
"""Number of rows of unit metadata that are sorted into parts together."""


def complete_index(store: Store, plan: Plan, row_format: RowFormat) -> Index:
    """Check that every unit is committed, and build the index if none covers the plan. StoreError if a unit is missing."""
    for unit in missing_units(store, plan):  # listings may lag, so these are looked up one by one
        if store.size(unit_metadata_path(unit.name)) is None:
            raise StoreError(f"unit {unit.name} is not committed; run the same command again")
    index = newest_index(store)
    if index is not None and index.covers(plan):
        return index
    covered = 0 if index is None else index.plan_generations
    settle_units(store, {unit.name for unit in plan.units if unit.generation >= covered})
    return build_index(store, plan, row_format)


def build_index(store: Store, plan: Plan, row_format: RowFormat) -> Index:
    """Compact the metadata of all units of the plan, unless an index covers as much; the index that covers the plan."""
    number = next_index_number(store)
    index = newest_index(store)
    return index if index is not None and index.covers(plan) else compact_index(store, plan, row_format, number)


def compact_index(store: Store, plan: Plan, row_format: RowFormat, number: int) -> Index:
    """Compact the metadata of all units of the plan, and record the index under the next free number; what is recorded.

    ``number``: the next free number before any unit metadata was read. A purge takes a number after it has replaced unit
    metadata, so no index that names what the purge deletes can get a later number than the purge has. If another job has
    recorded an index that covers as much under the number, that one is returned. Raises IntegrityError if a committed
    shard is missing or has another size than its unit's metadata says.
    """
    while True:
        index = dataclasses.replace(_compact(store, plan, row_format), generation=number)
        if store.put_new(index.path, index.to_json()):
            failpoint(Failpoint.INDEX_RECORDED)
            return index
        recorded = read_index_entry(store, number)
        if isinstance(recorded, Index) and recorded.plan_generations >= index.plan_generations:
            is_other = recorded.plan_generations == index.plan_generations and recorded != index
            if is_other and newest_purge(store) is None:
                raise IntegrityError(f"{store.url}/{index.path} does not agree with the metadata of the units")
            return recorded
        if isinstance(recorded, PurgedIndex):
            _delete_parts(store, index)
        number = max(number + 1, next_index_number(store))


def _delete_parts(store: Store, index: Index) -> None:
    """Delete the files of an index that could not be recorded: they may have rows that a purge has just taken."""
    newest = newest_index(store)
    kept = set() if newest is None else set(newest.files)
    for path in index.files:
        if path not in kept:
            store.delete(path)


def next_index_number(store: Store) -> int:
    """The number after the highest one that is taken, as far as a listing shows."""
    last = last_index_number(store)
    return 0 if last is None else last + 1


def _compact(store: Store, plan: Plan, row_format: RowFormat) -> Index:
    """Write the parts of an index of all units of the plan; the index, whose number is still open.

    Unit metadata is read once, in source order, with few rows in memory at a time. The parts stay on local disk until all
    are complete, since the hash of their content names their folder: equal metadata always gives equal files.
    """
    with contextlib.ExitStack() as stack:
        shards: dict[str, int] = {}
        totals = OutputTotals()
        units = _noted(read_unit_metadata(store, in_source_order(plan)), shards, totals)
        counts, parts = write_parts(units, row_format, lambda: stack.enter_context(store.scratch()))
        _check_shards(store, shards)
        names = "".join(f"{shard}\n" for shard in sorted(shards))
        files: dict[str, Path | bytes] = {**parts, "shards.txt": names.encode()}
        folder = put_parts(store, files)
    paths = {outcome: [f"{folder}/{name}" for name in files if name.startswith(f"{outcome}-")] for outcome in OUTCOMES}
    return Index(
        generation=0,
        plan_generations=len(plan.columns),
        samples=paths["samples"],
        rejects=paths["rejects"],
        skips=paths["skips"],
        shards=f"{folder}/shards.txt",
        num_samples=counts["samples"],
        num_rejects=counts["rejects"],
        num_skips=counts["skips"],
        totals=totals,
    )


def put_parts(store: Store, files: dict[str, Path | bytes]) -> str:
    """Upload the files of an index by name; their folder, whose name is a hash of their content."""
    folder = f"index/{_digest(files)}"
    for name, content in files.items():
        store.put_new(f"{folder}/{name}", content)
        failpoint(Failpoint.INDEX_PART_WRITTEN)
    return folder


def remove_orphans(store: Store, units: set[str], index: Index) -> None:
    """Delete tars of attempts that lost, which means that their own unit has committed another tar.

    Nothing is deleted while a purge replaces tars: earlier indexes and tags name the old ones until it deletes them itself.
    """
    purge = newest_purge(store)
    committed = set(store.get(index.shards).decode().splitlines())
    candidates = [path for path in store.list_files("shards") if path not in committed and unit_of(path) in units]
    newest = newest_unit_metadata(store) if candidates else {}
    orphans = []
    for path in candidates:
        unit = unit_of(path)
        # read the unit's own metadata, since the index may cover less than the plan
        metadata = read_parquet(store.get(newest.get(unit) or unit_metadata_path(unit)))
        if unit_metadata_facts(metadata).get("shard") != path:
            orphans.append(path)
    if orphans and (unfinished_purge(store) is not None or newest_purge(store) != purge):
        return
    for path in orphans:
        store.delete(path)
        failpoint(Failpoint.ORPHAN_REMOVED)


def write_parts(
    units: Iterable[tuple[Unit, pa.Table]], row_format: RowFormat, new_path: Callable[[], Path]
) -> tuple[Counter[str], dict[str, Path]]:
    """Write the parts of an index to local files; the number of rows of each outcome, and the files by name.

    ``units``: units with their metadata in source order, which are consumed one after the other.
    """
    writer = PartWriter(row_format, new_path)
    portion: list[pa.Table] = []
    for _, same_items in itertools.groupby(units, key=lambda pair: (pair[0].source, pair[0].start)):
        portion.append(_merged(list(same_items)))
        if sum(table.num_rows for table in portion) >= ROWS_AT_ONCE:
            writer.add(_with_all_columns(portion, row_format.schema))
            portion = []
    writer.add(_with_all_columns(portion, row_format.schema))
    return writer.counts, writer.close()


def _noted(
    units: Iterable[tuple[Unit, pa.Table]], shards: dict[str, int], totals: OutputTotals
) -> Iterator[tuple[Unit, pa.Table]]:
    """Pass the units on, after adding their facts to ``totals`` and the size in bytes of their shard to ``shards``."""
    for unit, metadata in units:
        facts = unit_metadata_facts(metadata)
        totals.add(facts)
        if "shard" in facts:
            shards[facts["shard"]] = int(facts["size_bytes"])
        yield unit, metadata


def _merged(units: list[tuple[Unit, pa.Table]]) -> pa.Table:
    """Join the rows of units over the same items, earliest unit first, without rejects that a later unit tried again."""
    if len(units) == 1:
        return units[0][1].replace_schema_metadata(None)
    tried_again = pa.array([], pa.string())
    kept: list[pa.Table] = []
    for unit, metadata in reversed(units):
        rows = metadata.replace_schema_metadata(None)
        kept.append(rows.filter(pc.invert(pc.is_in(rows["id"], tried_again))))
        if unit.retries:
            tried_again = pa.concat_arrays([tried_again, rows["id"].combine_chunks()])
    merged = pa.concat_tables(kept, promote_options="permissive")
    return merged.sort_by([key for key in ROW_ORDER if key[0] in merged.column_names])


def _with_all_columns(tables: list[pa.Table], full_schema: pa.Schema) -> pa.Table:
    """Join tables; columns that only later generations of the plan have become null in the rows of earlier ones."""
    return pa.concat_tables([full_schema.empty_table(), *tables], promote_options="permissive").combine_chunks()


def _check_shards(store: Store, size_bytes: dict[str, int]) -> None:
    """Raise IntegrityError unless every shard has the given size."""
    listed = store.list_files("shards")
    for shard, expected in size_bytes.items():
        found = listed.get(shard)
        if found is None:  # listings may lag behind
            found = store.size(shard)
        if found != expected:
            what = "it is missing" if found is None else f"found {found}"
            raise IntegrityError(f"{store.url}/{shard}: expected {expected} bytes, {what}")


def _digest(files: dict[str, Path | bytes]) -> str:
    """16 hex digits of a hash over the content of the files in the order of their names."""
    digest = hashlib.sha256()
    for _, content in sorted(files.items()):
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            digest.update(sha256_digest(file))
    return digest.hexdigest()[:16]

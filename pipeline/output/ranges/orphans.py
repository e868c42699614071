"""Removes what no part of a finished output names any more: tars of attempts that lost, and parts of unfinished indexes."""

from __future__ import annotations

from pipeline.output.index import Index, newest_index, read_index_entry
from pipeline.output.layout.own_files import INDEX, INDEX_PART, INDEX_RANGE
from pipeline.output.plan import plan_path
from pipeline.output.purges.record import newest_purge, unfinished_purge
from pipeline.output.unit_metadata import (
    newest_unit_metadata,
    unit_metadata_facts,
    unit_metadata_path,
    unit_of,
)
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


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


def remove_orphan_parts(store: Store) -> None:
    """Delete parts that killed jobs have made and that no index names.

    Nothing is deleted while the newest index lacks a generation of the plan, or while a purge runs: the parts may then be
    those of the next index. The order matters: files that are made after the listing are spared. Older ones belong to a
    state of the output that the newest index has left behind, unless an index names them, and those are read last.
    """
    purge = newest_purge(store)
    listed = list_parts(store)
    newest = newest_index(store) if listed else None
    if newest is None or store.size(plan_path(newest.plan_generations)) is not None:
        return
    orphans = find_unnamed(store, listed)
    if unfinished_purge(store) is not None or newest_purge(store) != purge:
        return
    for path in orphans:
        store.delete(path)
        failpoint(Failpoint.ORPHAN_REMOVED)
    store.remove_empty("index")


def orphan_parts(store: Store) -> list[str]:
    """Paths of parts of indexes, and of records of ranges, that no index of any number names; records come first."""
    return find_unnamed(store, list_parts(store))


def list_parts(store: Store) -> list[str]:
    """Paths of all parts of indexes and records of ranges."""
    return [path for path in store.list_files("index") if INDEX_RANGE.fullmatch(path) or INDEX_PART.fullmatch(path)]


def find_unnamed(store: Store, paths: list[str]) -> list[str]:
    """The given parts and records that no index of any number names; records come first.

    ``paths`` must have been listed before, so that an index that is recorded meanwhile is seen. A tag names an index by
    its number, so it keeps all that it needs.
    """
    live: set[str] = set()
    for path in store.list_files("index") if paths else ():
        if match := INDEX.fullmatch(path):
            entry = read_index_entry(store, int(match[1]))
            if isinstance(entry, Index):
                live |= {*entry.ranges, *entry.files}
    records = [path for path in paths if (match := INDEX_RANGE.fullmatch(path)) and match[1] not in live]
    return [*records, *(path for path in paths if INDEX_PART.fullmatch(path) and path not in live)]

"""``purges/<n>.changes.json``: what a purge has replaced and what it will delete. It is there before anything is deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.edit.purge.indexes import ReplacedUnits, has_data
from pipeline.edit.purge.layers import PurgedLayer
from pipeline.edit.purge.side_files import files_to_make_again
from pipeline.edit.purge.texts import is_clean_table, maps_of
from pipeline.errors import IntegrityError
from pipeline.output.edits.edits import Edits
from pipeline.output.index import PurgedIndex, last_index_number, read_index_entry
from pipeline.output.layers.known_layers import FOLDER, layer_store
from pipeline.output.layers.text_layer import strings_path
from pipeline.output.layout.own_files import SHARD, UNIT_METADATA, is_own
from pipeline.output.plan import read_plan
from pipeline.output.purges.record import CHANGES, MADE_BY, Purge, purge_path
from pipeline.output.purges.unit_purge import REPLACES
from pipeline.output.purges.unit_rewriting import drop_old_revisions, shard_of
from pipeline.output.ranges.orphans import orphan_parts
from pipeline.output.ranges.record import read_record
from pipeline.output.unit_metadata import newest_unit_metadata, unit_of
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import parquet_metadata
from pipeline.storage.store import Store

LAYER_FOLDERS = ("index", "maps", "strings")
"""Folders of a layer that lose files."""
Changes = dict[str, Any]
"""``units``: by name, what was replaced by what. ``deleted``: paths, sorted. ``layers``: the same for each text layer."""


def read_changes(store: Store, purge: Purge) -> Changes | None:
    """The changes of a purge; None if they are not recorded yet."""
    try:
        changes: Changes = json.loads(store.get(purge_path(purge.number, CHANGES)))
    except FileNotFoundError:
        return None
    return changes


def record_changes(store: Store, purge: Purge, edits: Edits, layers: list[PurgedLayer]) -> Changes:
    """Record what the purge has replaced, and what it will delete."""
    units = replacements(store, purge)
    changes: Changes = {
        "format_version": FORMAT_VERSION,
        "units": units,
        "samples": sum(len(unit["samples"]) for unit in units.values()),
        "layers": {layer.name: replacements(layer.store, purge) for layer in layers},
        "deleted": sorted({*dead_files(store, edits, layers), *files_to_make_again(store)}),
    }
    store.put_new(purge_path(purge.number, CHANGES), json.dumps(changes, indent=1, sort_keys=True).encode())
    failpoint(Failpoint.CHANGES_RECORDED)
    recorded = read_changes(store, purge)
    assert recorded is not None
    return recorded


def dead_files(store: Store, edits: Edits, layers: list[PurgedLayer]) -> Iterator[str]:
    """Yield the files that nothing names any more and that may have data of removed samples."""
    yield from dead_shards(store)
    yield from dead_parts(store, edits)
    yield from (f"{FOLDER}/{layer.name}/{path}" for layer in layers for path in _dead_files(layer))


def replacements(store: Store, purge: Purge) -> dict[str, Any]:
    """The replacements that a purge has made, by the name of the unit. store: that of an output or of a layer."""
    return {facts["unit"]: _describe(content, facts) for content, facts in _rewritten(store, purge)}


def delete_old(store: Store, purge: Purge, changes: Changes) -> None:
    """Delete what the changes name, and let earlier revisions of unit metadata have the content of the newest."""
    layers = {layer_store(store, name): units for name, units in changes["layers"].items()}
    for place, units in {store: changes["units"], **layers}.items():
        newest = newest_unit_metadata(place)
        for unit in units:
            drop_old_revisions(place, newest[unit])
    for path in changes["deleted"]:
        store.delete(path)
        failpoint(Failpoint.FILE_DELETED)
    for folder in (
        "index",
        "previews",
        *(f"{FOLDER}/{name}/{folder}" for name in changes["layers"] for folder in LAYER_FOLDERS),
    ):
        store.remove_empty(folder)


def replaced_units(store: Store, purge: Purge, edits: Edits) -> ReplacedUnits:
    """The units that a purge has rewritten so far."""
    shards = {facts["unit"]: facts.get("shard") for _, facts in _rewritten(store, purge)}
    newest = newest_unit_metadata(store)
    return ReplacedUnits(edits=edits, shards=shards, metadata=[newest[unit] for unit in sorted(shards)])


def _rewritten(store: Store, purge: Purge) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield content and facts of the newest metadata of each unit that the purge has rewritten."""
    paths = [path for path in newest_unit_metadata(store).values() if revision_of(path)]
    for content in map_concurrently(store.get, paths):
        facts = parquet_metadata(content)
        if facts.get(MADE_BY) == str(purge.number):
            yield content, facts


def revision_of(path: str) -> int:
    """The revision of unit metadata at a path."""
    match = UNIT_METADATA.fullmatch(path)
    assert match is not None
    return int(match[2])


def _describe(content: bytes, facts: dict[str, str]) -> dict[str, Any]:
    """Describe a revision of unit metadata and what it has replaced."""
    replaces = json.loads(facts[REPLACES])
    new = {name: facts.get(name) for name in ("shard", "sha256", "size_bytes")}
    new |= {"metadata_sha256": hashlib.sha256(content).hexdigest()}
    return {"samples": replaces.pop("samples"), "rows": replaces.pop("rows"), "old": replaces, "new": new}


def dead_shards(store: Store) -> Iterator[str]:
    """Yield the tars of committed units that their newest metadata does not name."""
    newest = newest_unit_metadata(store)
    by_unit: dict[str, list[str]] = {}
    for path in store.list_files("shards"):
        if SHARD.fullmatch(path):
            by_unit.setdefault(unit_of(path), []).append(path)
    suspects = {unit: paths for unit, paths in by_unit.items() if unit in newest}
    for unit, content in zip(suspects, map_concurrently(store.get, (newest[unit] for unit in suspects)), strict=True):
        yield from (path for path in suspects[unit] if path != shard_of(content))


def dead_parts(store: Store, edits: Edits) -> Iterator[str]:
    """Yield the parts of indexes that are gone, and parts that no index names if they have removed rows."""
    yield from _dead_among_unnamed(store, lambda path: has_data(store, path, edits))


def _dead_files(layer: PurgedLayer) -> Iterator[str]:
    """Yield the files of a layer that nothing names any more and that are about purged samples or their strings."""
    store = layer.store
    yield from dead_shards(store)
    yield from _dead_among_unnamed(store, lambda path: not is_clean_table(store, path, layer.kept))
    named = {path for text_map in maps_of(store) for path in (*text_map.paths, text_map.text_ids)}
    named |= {strings_path(unit.name) for unit in read_plan(store).units}
    for path in [*store.list_files("maps"), *store.list_files("strings")]:
        if path not in named and is_own(f"{FOLDER}/{layer.name}/{path}") and not layer.is_clean(path):
            yield path


def _dead_among_unnamed(store: Store, is_about_purged: Callable[[str], bool]) -> Iterator[str]:
    """Yield files of indexes that no index names: those that a purged index had, and parts with rows that must go.

    Lists of shards beside such parts go as well, and records of ranges that name them.
    """
    last = last_index_number(store)
    entries = [read_index_entry(store, number) for number in range(0 if last is None else last + 1)]
    gone = {path for entry in entries if isinstance(entry, PurgedIndex) for path in entry.parts}
    unnamed = orphan_parts(store)
    dead = gone.intersection(unnamed)
    dead.update(path for path in unnamed if path.endswith(".parquet") and _is_dead(path, is_about_purged))
    folders = {path.rpartition("/")[0] for path in dead}
    yield from dead
    for path in unnamed:
        if path.endswith(".txt") and path.rpartition("/")[0] in folders:
            yield path
        if path.endswith(".json") and _is_dead(
            path, lambda record: dead.intersection(read_record(store, record).paths)
        ):
            yield path


def _is_dead(path: str, is_about_purged: Callable[[str], object]) -> bool:
    """Tell if a file that nothing names must go. True if it cannot be read."""
    try:
        return bool(is_about_purged(path))
    except (pa.ArrowException, OSError, IntegrityError):
        return True

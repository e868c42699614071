"""Purges one unit; also the units that are committed while a purge runs, which the job that commits them purges itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.output.edits.edits import Edits, read_edits
from pipeline.output.members import CHECKSUM
from pipeline.output.purges.purged_rows import columns_to_look_at, has_purgeable_data, without_data
from pipeline.output.purges.record import MADE_BY, Purge, newest_purge
from pipeline.output.purges.unit_rewriting import drop_old_revisions, rewrite_unit
from pipeline.output.unit_metadata import newest_unit_metadata, unit_metadata_path
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import parquet_metadata, read_parquet
from pipeline.storage.store import Store

REPLACES = "replaces"
"""Fact of a unit: what this revision replaces, as JSON: the tar and the metadata with their sha256, and the checksums of the
purged samples by id."""


def purge_unit(store: Store, path: str, edits: Edits, purge: Purge) -> str | None:
    """Write the next revision of a unit without the data of removed rows; its path, or None if the unit has no such data.

    path: the newest revision. What it replaces stays. Safe to call again.
    """
    content = store.get(path)
    table = _parse(store, path, content)
    purged = has_purgeable_data(table, edits)
    if not pc.any(purged).as_py():
        return None
    arrays = array_prefixes_of(table.schema)
    facts = {MADE_BY: str(purge.number), REPLACES: describe_old(content, table.filter(purged), arrays)}
    return rewrite_unit(store, path, without_data(table, purged), id="id", arrays=arrays, facts=facts)


def describe_old(content: bytes, purged: pa.Table, arrays: Sequence[str], id: str = "id") -> str:
    """The value of the fact ``REPLACES`` for unit metadata that loses the data of some rows. id: column that names a row."""
    facts = parquet_metadata(content)
    samples = purged.filter(purged["shard"].is_valid())
    checksums = samples.select([id, *(f"{prefix}{CHECKSUM}" for prefix in arrays)]).to_pylist()
    values: dict[str, Any] = {name: facts.get(name) for name in ("shard", "sha256", "size_bytes")}
    values |= {"metadata_sha256": hashlib.sha256(content).hexdigest(), "rows": len(purged)}
    return json.dumps(values | {"samples": {row.pop(id): list(row.values()) for row in checksums}}, sort_keys=True)


def settle_committed_unit(store: Store, unit: str, known: Edits) -> None:
    """Purge a unit that was just committed, if a purge began after its last look at the edits.

    known: the edits at that time. Without this, a unit in flight could bring back what a purge has just deleted.
    """
    purge = newest_purge(store)
    if purge is not None and (known.generation is None or known.generation < purge.edits):
        _settle(store, unit_metadata_path(unit), read_edits(store, purge.edits), purge)


def settle_units(store: Store, units: set[str]) -> None:
    """Purge committed units that no index has yet, if anything was purged: their jobs may have been killed before."""
    purge = newest_purge(store)
    if purge is None or not units:
        return
    edits = read_edits(store, purge.edits)
    paths = [path for name, path in newest_unit_metadata(store).items() if name in units]
    for path in list(units_with_data(store, paths, edits)):
        _settle(store, path, edits, purge)


def units_with_data(store: Store, paths: Iterable[str], edits: Edits) -> Iterator[str]:
    """Yield the paths of unit metadata with removed rows that still have data."""
    for path, found in map_concurrently(partial(_has_data, store, edits), paths):
        if found:
            yield path


def array_prefixes_of(schema: pa.Schema) -> tuple[str, ...]:
    """Starts of the names of the columns that say where an array of a row is."""
    end = "tensor_offset"
    return tuple(name.removesuffix(end) for name in schema.names if name.endswith(end))


def _has_data(store: Store, edits: Edits, path: str) -> tuple[str, bool]:
    table = _parse(store, path, store.get(path), columns_to_look_at(edits))
    return path, bool(pc.any(has_purgeable_data(table, edits)).as_py())


def _parse(store: Store, path: str, content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Parse unit metadata. IntegrityError if it is damaged."""
    try:
        return read_parquet(content, columns)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(
            f"{store.url}/{path} is damaged ({str(error).splitlines()[0]}), so it cannot be searched for removed items: "
            "restore it from a copy"
        ) from error


def _settle(store: Store, path: str, edits: Edits, purge: Purge) -> None:
    new_path = purge_unit(store, path, edits, purge)
    if new_path is not None:
        for shard in drop_old_revisions(store, new_path):
            store.delete(shard)

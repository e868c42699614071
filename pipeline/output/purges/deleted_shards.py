"""Says why a shard is gone, if a purge has deleted it. The loader uses this module."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import LatentmillError, Purged, StoreError
from pipeline.output.purges.record import MADE_BY, read_purge
from pipeline.output.unit_metadata import unit_metadata_path, unit_of
from pipeline.storage.parquet import parquet_metadata
from pipeline.storage.store import Store


def read_shard(store: Store, shard: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the bytes at each (offset, length) of a shard. Purged if a purge has deleted it, StoreError if it is gone."""
    try:
        return store.read_ranges(shard, ranges)
    except FileNotFoundError as error:
        gone = StoreError(f"{store.url}/{shard} is gone; was the output moved while it was read?")
        raise purge_error(store, shard) or gone from error


def purge_error(store: Store, shard: str) -> Purged | None:
    """The error for a shard that a purge has deleted; None if none has. shard: its path, also one in a layer.

    A purge lets revision 0 of the unit's metadata have the content of the newest before it deletes the tar.
    """
    folder, _, name = shard.rpartition("shards/")
    unit = unit_of(name)
    try:
        facts = parquet_metadata(store.get(f"{folder}{unit_metadata_path(unit)}"))
        if facts.get("shard") == f"shards/{name}" or MADE_BY not in facts:
            return None
        purge = read_purge(store, int(facts[MADE_BY]))
    except (FileNotFoundError, LatentmillError, pa.ArrowException, OSError):
        return None  # what is wrong is said by the error of the shard
    return Purged(
        f"{store.url}/{shard} was deleted by {purge.name}, because samples in it were removed: open the output again. If "
        "this version left them out already, the state of its batches fits the newest version"
    )

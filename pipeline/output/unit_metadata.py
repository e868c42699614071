"""``metadata/<unit>.parquet``: the rows of one unit. Its appearance commits the unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.sources.units import Plan, Unit
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def unit_metadata_path(unit_name: str) -> str:
    """Where a unit's sidecar is, relative to the output."""
    return f"metadata/{unit_name}.parquet"


def unit_metadata_facts(table: pa.Table) -> dict[str, str]:
    """A sidecar's own facts: its unit, tar (``shard``, ``sha256``, ``size_bytes``), counts and sums."""
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}


def unit_of(shard: str) -> str:
    """Name of the unit that a tar's path names."""
    return shard.removeprefix("shards/").removesuffix(".tar").rpartition("-")[0]


def read_unit_metadata(store: Store, units: Iterable[Unit]) -> Iterator[tuple[Unit, pa.Table]]:
    """Every unit's sidecar, in their order, many asked for at a time."""
    return in_parallel(lambda unit: (unit, read_parquet(store.get(unit_metadata_path(unit.name)))), units)


def in_source_order(plan: Plan) -> list[Unit]:
    """The units as their rows follow one another in the index; those over the same items are neighbours."""
    return sorted(plan.units, key=lambda unit: (unit.source, unit.start, unit.generation))

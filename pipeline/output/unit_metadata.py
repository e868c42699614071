"""``metadata/<unit>.<revision>.parquet``: the rows of one unit. The appearance of revision 0 commits the unit.

Readers use the highest revision. Only purges write revisions above 0. Importing this module imports neither sources nor
video, since the loader uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.output.layout.own_files import UNIT_METADATA
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.sources.units import Plan, Unit


def unit_metadata_path(unit_name: str, revision: int = 0) -> str:
    """Path of a unit's metadata, relative to the output."""
    return f"metadata/{unit_name}.{revision}.parquet"


def newest_revisions(store: Store) -> dict[str, int]:
    """Highest revision of each unit's metadata, by name of the unit; from one listing.

    Listings may lag behind: a unit that is missing here may be committed.
    """
    revisions: dict[str, int] = {}
    for path in store.list_files("metadata"):
        if match := UNIT_METADATA.fullmatch(path):
            revisions[match[1]] = max(revisions.get(match[1], 0), int(match[2]))
    return revisions


def newest_unit_metadata(store: Store) -> dict[str, str]:
    """Path of the highest revision of each unit's metadata, by name of the unit, sorted; see ``newest_revisions``."""
    return {name: unit_metadata_path(name, revision) for name, revision in sorted(newest_revisions(store).items())}


def unit_metadata_paths(store: Store, units: Iterable[Unit]) -> list[str]:
    """Path of the highest revision of each given unit's metadata; revision 0 for units that no listing shows yet."""
    newest = newest_unit_metadata(store)
    return [newest.get(unit.name) or unit_metadata_path(unit.name) for unit in units]


def unit_metadata_facts(table: pa.Table) -> dict[str, str]:
    """The facts in a unit's metadata: its name, its tar (``shard``, ``sha256``, ``size_bytes``), counts and sums."""
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}


def unit_of(shard: str) -> str:
    """Name of the unit to which the tar at a path belongs."""
    return shard.removeprefix("shards/").removesuffix(".tar").rpartition("-")[0]


def read_unit_metadata(store: Store, units: Sequence[Unit]) -> Iterator[tuple[Unit, pa.Table]]:
    """Read the metadata of each unit, in the order given, with many requests at a time."""
    pairs = zip(units, unit_metadata_paths(store, units), strict=True)
    return map_concurrently(lambda pair: (pair[0], read_parquet(store.get(pair[1]))), pairs)


def in_source_order(plan: Plan) -> list[Unit]:
    """The units as their rows follow one another in the index. Units over the same items are neighbors."""
    return sorted(plan.units, key=lambda unit: (unit.source, unit.start, unit.generation))

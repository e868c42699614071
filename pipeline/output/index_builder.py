"""Compacts the metadata of all units into the index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.output.index import Index, _from_json
from pipeline.output.index_parts import KINDS, PartWriter
from pipeline.output.members import members_of
from pipeline.output.schema import schema as full_schema
from pipeline.output.totals import Totals
from pipeline.output.unit_metadata import (
    in_source_order,
    read_unit_metadata,
    unit_metadata_facts,
    unit_metadata_path,
    unit_of,
)
from pipeline.recipe import FORMAT_VERSION, Recipe
from pipeline.sources.units import Plan, Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

ROWS_AT_ONCE = 16_384
"""Of sidecars, that are sorted into parts together."""


def build_index(store: Store, plan: Plan, recipe: Recipe) -> Index:
    """Compact all sidecars; the same files for the same sidecars, whenever and however often it is called.

    Sidecars are read once, in the order of their sources; few rows are in memory at once. The parts lie on local disk until
    all are whole, since their hash names their folder. IntegrityError if a committed shard is missing or has another size
    than its sidecar says.
    """
    generation = len(plan.columns) - 1
    with contextlib.ExitStack() as stack:
        shards: dict[str, int] = {}
        totals = Totals()
        read = read_unit_metadata(store, in_source_order(plan))
        counts, parts = write_parts(
            _noting(read, shards, totals), plan, recipe, lambda: stack.enter_context(store.scratch())
        )
        _check_shards(store, shards)
        names = "".join(f"{shard}\n" for shard in sorted(shards))
        files: dict[str, Path | bytes] = {**parts, "shards.txt": names.encode()}
        folder = f"index/{generation:04d}-{_digest(files)}"
        for name, content in files.items():
            store.put_new(f"{folder}/{name}", content)
            failpoint(Failpoint.INDEX_PART_WRITTEN)
    values = {
        "format_version": FORMAT_VERSION,
        "generation": generation,
        "shards": f"{folder}/shards.txt",
        **{kind: [f"{folder}/{name}" for name in files if name.startswith(f"{kind}-")] for kind in KINDS},
        **{f"num_{kind}": counts[kind] for kind in KINDS},
        "totals": dataclasses.asdict(totals),
    }
    content = json.dumps(values, indent=1, sort_keys=True).encode()
    path = f"index/{generation:04d}.json"
    if not store.put_new(path, content) and store.get(path) != content:
        raise IntegrityError(f"{store.url}/{path} does not agree with the sidecars")
    failpoint(Failpoint.INDEX_RECORDED)
    return _from_json(content)  # not what a listing, which may lag behind, takes for the newest


def remove_orphans(store: Store, units: set[str], index: Index) -> None:
    """Delete tars of attempts that lost: those whose own unit has committed another tar. Nothing else is touched."""
    committed = set(store.get(index.shards).decode().splitlines())
    for path in store.list_files("shards"):
        unit = unit_of(path)
        if path in committed or unit not in units:
            continue
        # what the unit itself says, since the list above may be that of an earlier generation
        if unit_metadata_facts(read_parquet(store.get(unit_metadata_path(unit)))).get("shard") != path:
            store.delete(path)
            failpoint(Failpoint.ORPHAN_REMOVED)


def write_parts(
    sidecars: Iterable[tuple[Unit, pa.Table]], plan: Plan, recipe: Recipe, new_path: Callable[[], Path]
) -> tuple[Counter[str], dict[str, Path]]:
    """The parts of an index as local files by their names, and the number of rows of each kind.

    ``sidecars``: in source order; they are read as they are needed.
    """
    schema = full_schema(members_of(recipe), pa.unify_schemas(plan.columns))
    writer = PartWriter(schema, new_path)
    portion: list[pa.Table] = []
    for _, found in itertools.groupby(sidecars, key=lambda sidecar: (sidecar[0].source, sidecar[0].start)):
        portion.append(_merged(list(found)))
        if sum(table.num_rows for table in portion) >= ROWS_AT_ONCE:
            writer.add(_as(schema, portion))
            portion = []
    writer.add(_as(schema, portion))
    return writer.counts, writer.close()


def _noting(
    sidecars: Iterable[tuple[Unit, pa.Table]], shards: dict[str, int], totals: Totals
) -> Iterator[tuple[Unit, pa.Table]]:
    """The same, with the size in bytes of every shard that they name put into ``shards``, and all added to ``totals``."""
    for unit, table in sidecars:
        facts = unit_metadata_facts(table)
        totals.add(facts)
        if "shard" in facts:
            shards[facts["shard"]] = int(facts["size_bytes"])
        yield unit, table


def _merged(sidecars: list[tuple[Unit, pa.Table]]) -> pa.Table:
    """Rows of units over the same items, the earliest first, without the rejects that a later one has tried again."""
    if len(sidecars) == 1:
        return sidecars[0][1].replace_schema_metadata(None)
    later = pa.array([], pa.string())
    kept: list[pa.Table] = []
    for unit, table in reversed(sidecars):
        kept.append(table.replace_schema_metadata(None).filter(pc.invert(pc.is_in(table["id"], later))))
        if unit.retries:
            later = pa.concat_arrays([later, table["id"].combine_chunks()])
    rows = pa.concat_tables(kept, promote_options="default")
    return rows.sort_by([("ordinal", "ascending"), ("window", "ascending")])


def _as(schema: pa.Schema, tables: list[pa.Table]) -> pa.Table:
    """One table with every column, also those that later generations brought."""
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="default").combine_chunks()


def _check_shards(store: Store, expected: dict[str, int]) -> None:
    sizes = store.list_files("shards")
    for shard, size_bytes in expected.items():
        found = sizes.get(shard)
        if found is None:  # listings may lag behind
            found = store.size(shard)
        if found != size_bytes:
            raise IntegrityError(f"{store.url}/{shard}: expected {size_bytes} bytes, found {found}")


def _digest(files: dict[str, Path | bytes]) -> str:
    digest = hashlib.sha256()
    for _, content in sorted(files.items()):
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]

"""The index: every sidecar of a finished job compacted into a few Parquet files that readers open at once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.plan import Plan
from pipeline.recipe import FORMAT_VERSION
from pipeline.shards import sidecar_facts, sidecar_path
from pipeline.steps import Step, reached
from pipeline.store import Store
from pipeline.tables import read_parquet, write_parquet

ROWS_PER_PART = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """One compaction: paths of its parts, relative to the output."""

    generation: int
    samples: list[str]
    rejects: list[str]
    skips: list[str]
    shards: str
    num_samples: int
    num_rejects: int
    num_skips: int


def newest_index(store: Store) -> Index | None:
    """The newest finished compaction, or None while the first job is still running."""
    found = [path for path in store.list_files("index") if path.endswith(".json")]
    if not found:
        return None
    return _from_json(store.get(max(found)))


def _from_json(content: bytes) -> Index:
    values: dict[str, Any] = json.loads(content)
    values.pop("format_version")
    return Index(**values)


def build_index(store: Store, plan: Plan) -> Index:
    """Compact all sidecars; the same files for the same sidecars, whenever and however often it is called.

    IntegrityError if a committed shard is missing or has another size than its sidecar says.
    """
    sidecars = [store.get(sidecar_path(unit.name)) for unit in plan.units]
    tables = [read_parquet(sidecar) for sidecar in sidecars]
    shards = _check_shards(store, [sidecar_facts(table) for table in tables])
    tables = _without_replaced(plan, [table.replace_schema_metadata(None) for table in tables])
    table = pa.concat_tables(tables, promote_options="default")
    is_sample = pc.field("shard").is_valid()
    is_skip = pc.field("skip_reason").is_valid()
    parts = {
        "samples": table.filter(is_sample).sort_by([(c, "ascending") for c in ("bucket", "shard", "offset")]),
        "rejects": table.filter(~is_sample & ~is_skip).sort_by(
            [(c, "ascending") for c in ("source", "ordinal", "window")]
        ),
        "skips": table.filter(is_skip).sort_by([(c, "ascending") for c in ("source", "ordinal", "window")]),
    }
    generation = len(plan.columns) - 1
    files = {
        f"{name}-{n:05d}.parquet": data for name, rows in parts.items() for n, data in enumerate(_to_parquet(rows))
    }
    files["shards.txt"] = "".join(f"{shard}\n" for shard in shards).encode()
    digest = hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))).hexdigest()[:8]
    folder = f"index/{generation:04d}-{digest}"
    for name, data in files.items():
        store.put_new(f"{folder}/{name}", data)
        reached(Step.INDEX_PART_WRITTEN)
    values = {
        "format_version": FORMAT_VERSION,
        "generation": generation,
        "shards": f"{folder}/shards.txt",
        **{name: [f"{folder}/{f}" for f in files if f.startswith(name)] for name in ("samples", "rejects", "skips")},
        **{f"num_{name}": rows.num_rows for name, rows in parts.items()},
    }
    content = json.dumps(values, indent=1, sort_keys=True).encode()
    path = f"index/{generation:04d}.json"
    if not store.put_new(path, content) and store.get(path) != content:
        raise IntegrityError(f"{store.url}/{path} does not agree with the sidecars")
    reached(Step.INDEX_RECORDED)
    return _from_json(content)  # not what a listing, which may lag behind, takes for the newest


def remove_orphans(store: Store, units: set[str], index: Index) -> None:
    """Delete tars of attempts that lost: those whose own unit has committed another tar. Nothing else is touched."""
    committed = set(store.get(index.shards).decode().splitlines())
    for path in store.list_files("shards"):
        unit = unit_of(path)
        if path in committed or unit not in units:
            continue
        # what the unit itself says, since the list above may be that of an earlier generation
        if sidecar_facts(read_parquet(store.get(sidecar_path(unit)))).get("shard") != path:
            store.delete(path)
            reached(Step.ORPHAN_REMOVED)


def unit_of(shard: str) -> str:
    """Name of the unit that a tar's path names."""
    return shard.removeprefix("shards/").removesuffix(".tar").rpartition("-")[0]


def _without_replaced(plan: Plan, tables: list[pa.Table]) -> list[pa.Table]:
    """The units' sidecars, in plan order, without the rejects that a later generation has tried again."""
    later = pa.array([], pa.string())
    kept: list[pa.Table] = []
    for unit, table in zip(reversed(plan.units), reversed(tables), strict=True):
        kept.append(table.filter(pc.invert(pc.is_in(table["id"], later))) if len(later) else table)
        if unit.retries:
            later = pa.concat_arrays([later, table["id"].combine_chunks()])
    return kept[::-1]


def _check_shards(store: Store, facts: list[dict[str, str]]) -> list[str]:
    sizes = store.list_files("shards")
    expected = {f["shard"]: int(f["size_bytes"]) for f in facts if "shard" in f}
    for shard, size_bytes in expected.items():
        found = sizes.get(shard)
        if found is None:  # listings may lag behind
            found = store.size(shard)
        if found != size_bytes:
            raise IntegrityError(f"{store.url}/{shard}: expected {size_bytes} bytes, found {found}")
    return sorted(expected)


def _to_parquet(table: pa.Table) -> list[bytes]:
    return [write_parquet(table.slice(start, ROWS_PER_PART)) for start in range(0, table.num_rows, ROWS_PER_PART)]

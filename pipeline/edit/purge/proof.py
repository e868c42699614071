"""``purges/<n>.proof.json``: the check at the end of a purge. It goes over every object of the output.

Tars that units name are known by their sha256, so the check reads the tars that the purge has written, and of all others
the checksums that are recorded for their tensors. Everything else that can hold a removed sample is read whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.edit.purge.changes import Changes
from pipeline.edit.purge.indexes import has_data, live_indexes
from pipeline.edit.purge.layers import layers_of, member_ids
from pipeline.environment import time_now
from pipeline.output.edits.edits import MATCHED, Edits
from pipeline.output.layers.known_layers import FOLDER
from pipeline.output.layout.export_records import describe_exports
from pipeline.output.layout.own_files import SHARD, UNIT_METADATA, is_own, stray_files
from pipeline.output.members import CHECKSUM
from pipeline.output.purges.purged_rows import has_purgeable_data
from pipeline.output.purges.record import PROOF, Purge, purge_path, read_proof
from pipeline.output.purges.unit_purge import array_prefixes_of
from pipeline.output.unit_metadata import newest_unit_metadata, unit_metadata_facts, unit_of
from pipeline.recipe import FORMAT_VERSION
from pipeline.report.pictures import read_pictures
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import PARTIAL, Store

MAX_TWINS = 100
"""Number of samples with the bytes of a purged one that the proof names."""


@dataclass(kw_only=True)
class Finding:
    """Findings of the check."""

    files: int = 0
    """Number of objects of the output that were checked."""
    rows: int = 0
    """Number of rows of unit metadata."""
    shards: int = 0
    """Number of tars."""
    problems: list[str] = field(default_factory=list)
    """Places that still have data of removed samples; none in a proof."""
    twins: list[str] = field(default_factory=list)
    """Ids of other samples whose latent has the same bytes as that of a purged one."""
    not_searched: list[str] = field(default_factory=list)
    """Paths of files that other programs wrote, and of scratch files of running jobs."""


def check(store: Store, edits: Edits, changes: Changes) -> Finding:
    """Look for data of removed samples in every object of the output."""
    finding = Finding(not_searched=stray_files(store))
    listed = [path for path in store.list_files("") if is_own(path)]
    finding.files = sum(not path.startswith(".probe-") for path in listed)
    finding.not_searched += [path for path in listed if path.startswith(f"{PARTIAL}/")]
    finding.problems += [f"{path} was to be deleted and is there" for path in sorted({*changes["deleted"]} & {*listed})]
    named = _check_metadata(store, listed, edits, changes, finding)
    _check_shards(store, listed, named, edits, changes, finding)
    for path in listed:
        if path.startswith("index/") and path.endswith(".parquet") and has_data(store, path, edits):
            finding.problems.append(f"{path} has rows of removed samples")
    for index in live_indexes(store):
        shards = store.get(index.shards).decode().split()
        finding.problems += [f"{index.path} names {shard}" for shard in shards if shard in set(changes["deleted"])]
    for layer in layers_of(store, edits):
        finding.problems += [f"{FOLDER}/{layer.name}/{path} knows purged samples" for path in layer.unclean_files()]
    purged = {id for unit in changes["units"].values() for id in unit["samples"]}
    finding.problems += [f"a picture shows {picture.id}" for picture in read_pictures(store) if picture.id in purged]
    return finding


def record_proof(store: Store, purge: Purge, changes: Changes, finding: Finding, late: Sequence[str]) -> dict[str, Any]:
    """Record that the purge is done; what is recorded. late: further paths that were deleted."""
    proof = {
        "format_version": FORMAT_VERSION,
        "edits": purge.edits,
        "begun": purge.time,
        "finished": time_now(),
        "samples": changes["samples"],
        "units": len(changes["units"]),
        "deleted": len(changes["deleted"]) + len(late),
        "deleted_late": list(late),
        "checked": {"files": finding.files, "rows": finding.rows, "shards": finding.shards},
        "exports": describe_exports(store),
        "same_bytes": finding.twins,
        "not_searched": finding.not_searched,
    }
    store.put_new(purge_path(purge.number, PROOF), json.dumps(proof, indent=1, sort_keys=True).encode())
    failpoint(Failpoint.PURGE_PROVED)
    return read_proof(store, purge)


def _check_metadata(
    store: Store, listed: list[str], edits: Edits, changes: Changes, finding: Finding
) -> dict[str, tuple[str, str]]:
    """Check every revision of unit metadata; unit and sha256 of the tars that the newest revisions name."""
    checksums = {tuple(values) for unit in changes["units"].values() for values in unit["samples"].values()}
    newest = set(newest_unit_metadata(store).values())
    named: dict[str, tuple[str, str]] = {}
    paths = [path for path in listed if UNIT_METADATA.fullmatch(path)]
    for path, content in zip(paths, map_concurrently(store.get, paths), strict=True):
        table = read_parquet(content)
        if pc.any(has_purgeable_data(table, edits)).as_py():
            finding.problems.append(f"{path} has rows of removed samples")
        if path in newest:
            facts = unit_metadata_facts(table)
            finding.rows += len(table)
            if "shard" in facts:
                named[facts["shard"]] = facts["unit"], facts["sha256"]
            finding.twins += _twins(table, checksums)[: MAX_TWINS - len(finding.twins)]
    return named


def _twins(table: pa.Table, checksums: set[tuple[int, ...]]) -> list[str]:
    """Ids of samples whose arrays have the checksums of those of a purged sample."""
    samples = table.filter(table["shard"].is_valid())
    columns = [samples[f"{prefix}{CHECKSUM}"].to_pylist() for prefix in array_prefixes_of(table.schema)]
    rows = zip(samples["id"].to_pylist(), zip(*columns, strict=True), strict=True)
    return [id for id, values in rows if values in checksums]


def _check_shards(
    store: Store,
    listed: list[str],
    named: dict[str, tuple[str, str]],
    edits: Edits,
    changes: Changes,
    finding: Finding,
) -> None:
    """Check that every tar is one that a unit names, and read those that the purge has written."""
    committed = {unit for unit, _ in named.values()} | {*newest_unit_metadata(store)}
    for path in listed:
        if not SHARD.fullmatch(path):
            continue
        finding.shards += 1
        if path not in named:
            if unit_of(path) in committed:
                finding.problems.append(f"{path} is no part of the output and was not deleted")
            elif _holds_removed(store.get(path), edits):
                finding.problems.append(
                    f"{path} holds removed samples of a unit that is not committed: finish the job that encodes it"
                )
            continue
        unit, sha256 = named[path]
        if unit in changes["units"]:
            content = store.get(path)
            purged = changes["units"][unit]["samples"]
            if hashlib.sha256(content).hexdigest() != sha256 or any(id in purged for id in member_ids(content)):
                finding.problems.append(f"{path} is damaged, or holds removed samples")


def _holds_removed(tar: bytes, edits: Edits) -> bool:
    """Tell if a tar has members of a removed sample, by the JSON of its samples."""
    rows = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            for member in members:
                if member.name.endswith(".json") and (file := members.extractfile(member)) is not None:
                    rows.append(json.loads(file.read()))
    except (tarfile.TarError, ValueError):
        return False  # not a tar that this program wrote
    schema = pa.schema([(name, pa.int64() if name == "ordinal" else pa.string()) for name in ("id", *MATCHED)])
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    return bool(len(rows)) and bool(pc.any(has_purgeable_data(table, edits)).as_py())

"""Writes a unit again without some of its samples: a new tar, and a new revision of its metadata.

What is left is copied in its order, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.output.checks.units import read_blocks
from pipeline.output.layout.own_files import UNIT_METADATA
from pipeline.output.purges.latent_sums import latent_sums
from pipeline.output.tar_writer import TarWriter
from pipeline.output.unit_metadata import unit_metadata_facts, unit_metadata_path
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import parquet_metadata, write_parquet
from pipeline.storage.store import Store

OF_SHARD = ("shard", "sha256", "size_bytes", "environment")
"""Facts of a unit that only one with a shard has."""
OUTCOMES = {"num_samples": "shard", "num_skips": "skip_reason", "num_rejects": "reject_reason"}
"""Facts with numbers of rows, and the column that only those rows have."""


def rewrite_unit(
    store: Store, path: str, left: pa.Table, *, id: str, arrays: Sequence[str], facts: Mapping[str, str]
) -> str:
    """Put the next revision of a unit's metadata, after a tar of the samples that are left; the revision's path.

    path: the newest revision. left: its rows with its own facts; samples that are not among them lose their members. id:
    column that names the members of a row. arrays: prefixes of the columns that say where arrays are. facts: further facts
    of the new revision. IntegrityError if the old tar is damaged. Safe to call again.
    """
    match = UNIT_METADATA.fullmatch(path)
    assert match is not None
    unit, revision = match[1], int(match[2]) + 1
    old = unit_metadata_facts(left)
    new = {name: value for name, value in old.items() if name not in OF_SHARD}
    new |= {
        name: str(len(left) - left[column].null_count)
        for name, column in OUTCOMES.items()
        if column in left.column_names
    }
    new_path = unit_metadata_path(unit, revision)
    with contextlib.ExitStack() as stack:
        if new["num_samples"] == old["num_samples"]:
            new |= {name: old[name] for name in OF_SHARD if name in old}
        else:
            scratch = stack.enter_context(store.scratch())
            left, sha256, size_bytes = _copy_members(store, old, left, scratch, id, arrays)
            new |= latent_sums(scratch, left, old)
            if int(new["num_samples"]):
                shard = f"shards/{unit}-{sha256[:8]}.tar"
                new |= {"shard": shard, "sha256": sha256, "size_bytes": str(size_bytes)}
                new |= {"environment": old["environment"]} if "environment" in old else {}
                left = _with_shard(left, shard)
                store.put_new(shard, scratch)  # if it exists, it has the same bytes: its name is their hash
                failpoint(Failpoint.TAR_UPLOADED)
        store.put_new(new_path, write_parquet(left.replace_schema_metadata(new | dict(facts))))
        failpoint(Failpoint.UNIT_REWRITTEN)
        if "shard" in new and new.get("shard") != old.get("shard") and store.size(new["shard"]) is None:
            store.put_new(new["shard"], scratch)  # a job took it for the tar of an attempt that lost
    return new_path


def drop_old_revisions(store: Store, path: str) -> list[str]:
    """Replace all earlier revisions of a unit's metadata by the newest, which is at ``path``; the tars that they named.

    Earlier revisions keep their names: revision 0 says that the unit is committed.
    """
    match = UNIT_METADATA.fullmatch(path)
    assert match is not None
    content, shards = store.get(path), []
    for revision in range(int(match[2])):
        earlier = unit_metadata_path(match[1], revision)
        found = store.get(earlier)
        if found != content:
            shards += [shard for shard in [shard_of(found)] if shard is not None]
            store.put(earlier, content)
            failpoint(Failpoint.REVISION_REPLACED)
    newest = shard_of(content)
    return [shard for shard in shards if shard != newest]


def shard_of(metadata: bytes) -> str | None:
    """The tar that unit metadata names."""
    return parquet_metadata(metadata).get("shard")


def _copy_members(
    store: Store, facts: Mapping[str, str], left: pa.Table, target: Path, id: str, arrays: Sequence[str]
) -> tuple[pa.Table, str, int]:
    """Write the tar of the samples that are left; the rows with their new places, and sha256 and size of the tar."""
    samples = left[id].filter(left["shard"].is_valid())
    kept = frozenset(samples.to_pylist())
    moved: dict[int, int] = {}
    with TarWriter(target) as writer:
        if kept:
            with _local_shard(store, facts) as source, tarfile.open(source, "r:") as tar:
                for member in tar:
                    if member.name.partition(".")[0] in kept:
                        file = tar.extractfile(member)
                        assert file is not None, "only files are written into shards"
                        moved[member.offset_data] = writer.add(member.name, file.read())
        sha256, size_bytes = writer.close()
    for prefix in arrays:
        left = _moved(left, prefix, moved)
    return left, sha256, size_bytes


def _moved(rows: pa.Table, prefix: str, moved: Mapping[int, int]) -> pa.Table:
    """The rows with the new places of one array. moved: new offset of a member by its old one."""
    old = rows[f"{prefix}offset"].to_pylist()
    shifts = pa.array([None if offset is None else moved[offset] - offset for offset in old], pa.int64())
    for name in (f"{prefix}offset", f"{prefix}tensor_offset"):
        number = rows.schema.get_field_index(name)
        rows = rows.set_column(number, rows.schema.field(number), pc.add(rows[name], shifts))
    return rows


def _with_shard(rows: pa.Table, shard: str) -> pa.Table:
    number = rows.schema.get_field_index("shard")
    column = pc.if_else(rows["shard"].is_valid(), pa.scalar(shard), pa.scalar(None, pa.string()))
    return rows.set_column(number, rows.schema.field(number), column)


@contextlib.contextmanager
def _local_shard(store: Store, facts: Mapping[str, str]) -> Iterator[Path]:
    """The tar of a unit as a local file. IntegrityError unless it has the recorded bytes."""
    shard, size_bytes = facts["shard"], int(facts["size_bytes"])
    with store.scratch() as scratch:
        digest = hashlib.sha256()
        found = store.size(shard)
        if found == size_bytes:
            with scratch.open("wb") as file:
                for _, block in read_blocks(store, shard, size_bytes):
                    digest.update(block)
                    file.write(block)
        if found != size_bytes or digest.hexdigest() != facts["sha256"]:
            raise IntegrityError(
                f"{store.url}/{shard} is missing or damaged, so its other samples cannot be copied: restore it from a copy, "
                "then run the purge again"
            )
        yield scratch

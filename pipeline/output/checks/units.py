"""Checks committed units: their metadata, and every byte of their shards."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import google_crc32c
import pyarrow as pa

from pipeline.output.checks.tables import read_or_describe
from pipeline.output.counts import Int8Errors
from pipeline.output.index_parts import RowFormat
from pipeline.output.members import CHECKSUM
from pipeline.output.unit_metadata import unit_metadata_facts
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.store import Store
from pipeline.storage.urls import leads_out

UNITS_PER_TASK = 50
"""Number of units that a task checks. Shards may be large, so these are fewer than in a range of the index."""
BLOCK_BYTES = 64 << 20
"""Bytes of a shard that are in memory at once."""


@dataclass(kw_only=True, slots=True)
class CheckedUnits:
    """The result of a task: what it has read, and the problems."""

    first: int
    """Number of the task's first unit, which orders the results."""
    units: int = 0
    shards: list[str] = field(default_factory=list)
    """Paths of the shards that the units name."""
    samples: int = 0
    size_bytes: int = 0
    int8_errors: Int8Errors = field(default_factory=Int8Errors)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Path and description of each problem."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CheckedUnits:
        """The result that ``to_json`` wrote."""
        problems = [(path, what) for path, what in values["problems"]]
        return cls(**{**values, "problems": problems, "int8_errors": Int8Errors(**values["int8_errors"])})


def check_units(store: Store, row_format: RowFormat, task: tuple[int, Sequence[str]]) -> dict[str, Any]:
    """Check units, given as the number of the first one and the paths of their metadata; a ``CheckedUnits``."""
    first, paths = task
    result = CheckedUnits(first=first)
    for path, metadata in zip(paths, map_concurrently(partial(read_or_describe, store), paths), strict=True):
        result.units += 1
        if isinstance(metadata, str):
            result.problems.append((path, metadata))
        else:
            _check_unit(store, row_format, path, metadata, result)
    return result.to_json()


def _check_unit(store: Store, row_format: RowFormat, path: str, metadata: pa.Table, result: CheckedUnits) -> None:
    """Check the facts in a unit's metadata, and its shard."""
    result.int8_errors.add(metadata)
    facts = unit_metadata_facts(metadata)
    counts: Counter[str] = Counter()
    for portion in row_format.split(metadata.select([n for n in row_format.split_by if n in metadata.column_names])):
        counts[f"num_{portion.outcome}"] += portion.rows.num_rows
    for name in ("num_samples", "num_skips", "num_rejects"):
        if int(facts[name]) != counts[name]:
            result.problems.append((path, f"its facts say {name} {facts[name]}, but it has {counts[name]}"))
    if leads_out(facts.get("shard", "")):
        result.problems.append((path, f"the path of its shard leads out of the output: {facts['shard']!r}"))
    elif "shard" in facts:
        result.shards.append(facts["shard"])
        _check_shard(store, facts, _stored_tensors(metadata, row_format), result)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored tensor, and what its checksum should be."""

    id: str
    key: str
    offset: int
    nbytes: int
    crc32c: int


def _stored_tensors(metadata: pa.Table, row_format: RowFormat) -> list[_Tensor]:
    """Every tensor of a unit's rows, those of one array after the other."""
    is_stored = metadata["shard"].is_valid()
    tensors: list[_Tensor] = []
    for prefix in row_format.arrays:
        place = [f"{prefix}{name}" for name in ("tensor_offset", "tensor_nbytes", CHECKSUM)]
        columns = (metadata[name].filter(is_stored).to_pylist() for name in (row_format.id, row_format.key, *place))
        tensors += [_Tensor(*values) for values in zip(*columns, strict=True)]
    return tensors


def _check_shard(store: Store, facts: dict[str, str], tensors: list[_Tensor], result: CheckedUnits) -> None:
    """Read a tar once and compare its sha256, and the crc32c of every tensor in it, with what was recorded."""
    shard, expected = facts["shard"], int(facts["size_bytes"])
    size = store.size(shard)
    if size != expected:
        found = "missing" if size is None else f"{size} bytes"
        result.problems.append((shard, f"expected {expected} bytes, found {found}"))
    if not size:
        return
    sums = dict.fromkeys(tensors, 0)
    digest = hashlib.sha256()
    for start, block in read_blocks(store, shard, size):
        digest.update(block)
        for tensor in tensors:
            piece = block[max(tensor.offset - start, 0) : max(tensor.offset + tensor.nbytes - start, 0)]
            sums[tensor] = google_crc32c.extend(sums[tensor], piece) if piece else sums[tensor]
    if digest.hexdigest() != facts["sha256"]:
        problem = f"its sha256 is {digest.hexdigest()[:16]}..., expected {facts['sha256'][:16]}..."
        result.problems.append((shard, problem))
    for tensor, crc32c in sums.items():
        if crc32c != tensor.crc32c:
            problem = f"the tensor of {tensor.id} ({tensor.key}) at {tensor.offset} is damaged"
            result.problems.append((shard, problem))
    result.samples += int(facts["num_samples"])
    result.size_bytes += size


def read_blocks(store: Store, path: str, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield a shard in blocks, each with its offset, so that one block is in memory at a time."""
    for start in range(0, size_bytes, BLOCK_BYTES):
        yield start, store.read_ranges(path, [(start, min(BLOCK_BYTES, size_bytes - start))])[0]

"""Is an output still what was committed? Every byte of its shards, its index, and samples encoded again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.dataset import read_dataset
from pipeline.output.index import newest_index
from pipeline.output.index_builder import write_parts
from pipeline.output.members import CHECKSUM, Member, members_of
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import in_source_order, unit_metadata_facts, unit_metadata_path
from pipeline.sources.units import Plan, Unit
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

PATH = "verify.json"
BLOCK_BYTES = 64 << 20
"""Bytes of a shard that are in memory at once."""

_NO_ROWS = pa.schema([("id", pa.string()), ("key", pa.string())]).empty_table()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One sample encoded again from its source, beside what is stored."""

    id: str
    key: str
    max_abs: float
    cosine: float
    psnr_db: float
    """Of the stored latent decoded back, against the source's frames."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What was looked at, and every problem found: where, and what is wrong there."""

    units: int = 0
    shards: int = 0
    samples: int = 0
    size_bytes: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, else 1."""
        return 1 if self.problems else 0

    def save(self, store: Store) -> None:
        """Write the verdict beside what it is about."""
        store.put(PATH, json.dumps(dataclasses.asdict(self), indent=1).encode())


def verify(store: Store, say: Callable[[str], None]) -> Verdict:
    """Read everything that is committed and compare it with what its commit says. Raises StoreError if it cannot be read.

    The index is compared with one that is made again, on local disk: few rows are in memory at once.
    """
    verdict = Verdict()
    recipe, plan = read_dataset(store).recipe, read_plan(store)
    shards: set[str] = set()
    with contextlib.ExitStack() as stack:
        units = _checked_units(store, plan, members_of(recipe), shards, verdict, say)
        _, parts = write_parts(units, plan, recipe, lambda: stack.enter_context(store.scratch()))
        _check_index(store, parts, shards, verdict)
    return verdict


def _checked_units(
    store: Store,
    plan: Plan,
    members: Sequence[Member],
    shards: set[str],
    verdict: Verdict,
    say: Callable[[str], None],
) -> Iterator[tuple[Unit, pa.Table]]:
    """Every sidecar that can be read, once it and its shard have been looked at. Notes the shards."""
    units = in_source_order(plan)
    paths = [unit_metadata_path(unit.name) for unit in units]
    for unit, path, sidecar in zip(units, paths, in_parallel(partial(_read, store), paths), strict=True):
        verdict.units += 1
        if isinstance(sidecar, str):
            verdict.problems.append((path, sidecar))
            continue
        facts = unit_metadata_facts(sidecar)
        counts = {"num_samples": sidecar["shard"].is_valid(), "num_skips": sidecar["skip_reason"].is_valid()}
        counts = {name: pc.sum(found).as_py() or 0 for name, found in counts.items()}
        counts["num_rejects"] = len(sidecar) - sum(counts.values())
        for name, count in counts.items():
            if int(facts[name]) != count:
                problem = f"its metadata says {name} {facts[name]}, it holds {count}"
                verdict.problems.append((path, problem))
        if "shard" in facts:
            shards.add(facts["shard"])
            verdict.shards += 1
            _check_shard(store, facts, _stored_tensors(sidecar, members), verdict)
            if verdict.shards % 100 == 0:
                say(f"{verdict.shards} shards read, {len(verdict.problems)} problems")
        yield unit, sidecar


def _read(store: Store, path: str) -> pa.Table | str:
    """A table, or what is wrong with it."""
    try:
        return read_parquet(store.get(path))
    except FileNotFoundError:
        return "missing; if the job did not finish, run it again"
    except (pa.ArrowException, OSError) as error:  # what Arrow raises for damaged files
        return f"cannot be read: {str(error).splitlines()[0]}"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored tensor, and what its checksum should be."""

    id: str
    key: str
    offset: int
    nbytes: int
    crc32c: int


def _stored_tensors(metadata: pa.Table, members: Sequence[Member]) -> list[_Tensor]:
    """Every tensor of a unit's samples, those of one member after the other."""
    samples = metadata.filter(metadata["shard"].is_valid())
    tensors: list[_Tensor] = []
    for member in members:
        names = ["id", "key", *map(member.column, ("tensor_offset", "tensor_nbytes", CHECKSUM))]
        columns = (samples[name].to_pylist() for name in names)
        tensors += [_Tensor(*values) for values in zip(*columns, strict=True)]
    return tensors


def _check_shard(store: Store, facts: dict[str, str], tensors: list[_Tensor], verdict: Verdict) -> None:
    """Read a tar once and compare its sha256, and the crc32c of every tensor in it, with what was recorded."""
    shard, expected = facts["shard"], int(facts["size_bytes"])
    size = store.size(shard)
    if size != expected:
        found = "missing" if size is None else f"{size} bytes"
        verdict.problems.append((shard, f"expected {expected} bytes, found {found}"))
    if not size:
        return
    sums = dict.fromkeys(tensors, 0)
    digest = hashlib.sha256()
    for start, block in _blocks(store, shard, size):
        digest.update(block)
        for tensor in tensors:
            piece = block[max(tensor.offset - start, 0) : max(tensor.offset + tensor.nbytes - start, 0)]
            sums[tensor] = google_crc32c.extend(sums[tensor], piece) if piece else sums[tensor]
    if digest.hexdigest() != facts["sha256"]:
        verdict.problems.append(
            (shard, f"its sha256 is {digest.hexdigest()[:16]}..., expected {facts['sha256'][:16]}...")
        )
    for tensor, crc32c in sums.items():
        if crc32c != tensor.crc32c:
            problem = f"the tensor of {tensor.id} ({tensor.key}) at {tensor.offset} is damaged"
            verdict.problems.append((shard, problem))
    verdict.samples += int(facts["num_samples"])
    verdict.size_bytes += size


def _blocks(store: Store, path: str, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, size_bytes, BLOCK_BYTES):
        yield start, store.read_ranges(path, [(start, min(BLOCK_BYTES, size_bytes - start))])[0]


def _check_index(store: Store, parts: dict[str, Path], shards: set[str], verdict: Verdict) -> None:
    """The newest index holds the rows of the sidecars, no more and no fewer, and names their shards."""
    index = newest_index(store)
    if index is None:
        verdict.problems.append(("index/", "there is no index: the job has not finished; run it again"))
        return
    where = f"index/{index.generation:04d}.json"
    for kind, paths in (("samples", index.samples), ("rejects", index.rejects), ("skips", index.skips)):
        made = [path for name, path in parts.items() if name.startswith(kind)]
        for what in _differences(store, made, paths, verdict):
            verdict.problems.append((where, what))
    try:
        listed = store.get(index.shards).decode().split()
    except FileNotFoundError:
        listed = []
    if listed != sorted(shards):
        verdict.problems.append((index.shards, "does not list the committed shards"))


def _differences(store: Store, made: list[Path], stored: list[str], verdict: Verdict) -> Iterator[str]:
    """What differs between parts of the index as they should be and as they are."""
    missing: dict[str, str] = {}
    extra: dict[str, str] = {}
    for ours, path in itertools.zip_longest(made, stored):
        if ours and path and _same_bytes(store, ours, path):
            continue  # as always, unless another version of Arrow wrote it
        expected = read_parquet(ours.read_bytes()) if ours else _NO_ROWS
        found = _read(store, path) if path else _NO_ROWS
        if isinstance(found, str):
            verdict.problems.append((path, found))
            found = _NO_ROWS
        if not expected.equals(found):
            place = pc.index_in(expected["id"], value_set=found["id"])
            missing |= _keys(expected.filter(pc.is_null(place)))
            extra |= _keys(found.filter(pc.invert(pc.is_in(found["id"], value_set=expected["id"]))))
            yield from _differing_rows(expected.filter(pc.is_valid(place)), found.take(place.drop_null()))
    # rows that have moved from one part to the next since others are missing are not missing themselves
    for name in missing.keys() - extra.keys():
        yield f"the row of {name} ({missing[name]}) is missing"
    for name in extra.keys() - missing.keys():
        yield f"{name} is in no sidecar"


def _same_bytes(store: Store, ours: Path, path: str) -> bool:
    try:
        return store.get(path) == ours.read_bytes()
    except FileNotFoundError:
        return False


def _differing_rows(expected: pa.Table, found: pa.Table) -> Iterator[str]:
    """Name each row that differs, with its columns. Both tables have the same ids in the same order."""
    differing: dict[int, list[str]] = {}
    for name in expected.column_names:
        if name not in found.column_names or name.startswith("meta"):
            continue  # user columns may have types that Arrow cannot compare
        a, b = expected[name], found[name]
        differs = pc.fill_null(pc.not_equal(a, b), pc.xor(a.is_null(), b.is_null()))
        for row in pc.indices_nonzero(differs).to_pylist():
            differing.setdefault(row, []).append(name)
    for row, names in differing.items():
        yield f"the row of {expected['id'][row]} ({expected['key'][row]}) differs in {', '.join(names)}"


def _keys(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True))

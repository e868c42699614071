"""Is an output still what was committed? Every byte of its shards, its index, and samples encoded again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.index import newest_index
from pipeline.output.index_builder import write_parts
from pipeline.output.plan import read_plan
from pipeline.output.schema import NAMES, schema
from pipeline.output.unit_metadata import in_source_order, unit_metadata_facts, unit_metadata_path
from pipeline.sources.units import Plan, Unit
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

PATH = "verify.json"
WINDOW_BYTES = 64 << 20
"""Of a shard that is held in memory at once."""

Row = dict[str, Any]

_TENSORS = [
    f"{prefix}{name}"
    for prefix in ("", "first_", "last_")
    for name in ("offset", "tensor_offset", "tensor_nbytes", "crc32c")
]
_NO_ROWS = schema(pa.schema([])).empty_table()


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
    plan = read_plan(store)
    shards: set[str] = set()
    with contextlib.ExitStack() as stack:
        sidecars = _checked_units(store, plan, shards, verdict, say)
        _, parts = write_parts(sidecars, plan, lambda: stack.enter_context(store.scratch()))
        _check_index(store, parts, shards, verdict)
    return verdict


def _checked_units(
    store: Store, plan: Plan, shards: set[str], verdict: Verdict, say: Callable[[str], None]
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
            samples = sidecar.filter(sidecar["shard"].is_valid()).select(["id", "key", *_TENSORS])
            _check_shard(store, facts, samples.to_pylist(), verdict)
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


def _check_shard(store: Store, facts: dict[str, str], rows: list[Row], verdict: Verdict) -> None:
    """One pass over a tar: its sha256, and the crc32c of every tensor in it."""
    shard, expected = facts["shard"], int(facts["size_bytes"])
    size = store.size(shard)
    if size != expected:
        found = "missing" if size is None else f"{size} bytes"
        verdict.problems.append((shard, f"expected {expected} bytes, found {found}"))
    if not size:
        return
    spans = [span for row in rows for span in _tensors(row)]
    sums = dict.fromkeys(spans, 0)
    digest = hashlib.sha256()
    for start, window in _windows(store, shard, size):
        digest.update(window)
        for span in spans:
            piece = window[max(span[0] - start, 0) : max(span[0] + span[1] - start, 0)]
            sums[span] = google_crc32c.extend(sums[span], piece) if piece else sums[span]
    if digest.hexdigest() != facts["sha256"]:
        verdict.problems.append(
            (shard, f"its sha256 is {digest.hexdigest()[:16]}..., expected {facts['sha256'][:16]}...")
        )
    for row in rows:
        verdict.samples += 1
        for offset, nbytes, crc32c in _tensors(row):
            if sums[offset, nbytes, crc32c] != crc32c:
                verdict.problems.append((shard, f"the tensor of {row['id']} ({row['key']}) at {offset} is damaged"))
    verdict.size_bytes += size


def _tensors(row: Row) -> Iterator[tuple[int, int, int]]:
    for prefix in ("", "first_", "last_"):
        if row[f"{prefix}offset"] is not None:
            yield row[f"{prefix}tensor_offset"], row[f"{prefix}tensor_nbytes"], row[f"{prefix}crc32c"]


def _windows(store: Store, path: str, size: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, size, WINDOW_BYTES):
        yield start, store.read_ranges(path, [(start, min(WINDOW_BYTES, size - start))])[0]


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
    differing: dict[int, list[str]] = {}
    for name in NAMES:
        a, b = expected[name], found[name]
        differs = pc.fill_null(pc.not_equal(a, b), pc.xor(a.is_null(), b.is_null()))
        for row in pc.indices_nonzero(differs).to_pylist():
            differing.setdefault(row, []).append(name)
    for row, names in differing.items():
        yield f"the row of {expected['id'][row]} ({expected['key'][row]}) differs in {', '.join(names)}"


def _keys(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows["id"].to_pylist(), rows["key"].to_pylist(), strict=True))

"""Is an output still what was committed? Every byte of its shards, its index, and samples encoded again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import pyarrow as pa

from pipeline.columns import NAMES
from pipeline.index import newest_index
from pipeline.plan import read_plan
from pipeline.shards import sidecar_facts, sidecar_path
from pipeline.store import Store
from pipeline.tables import read_parquet

PATH = "verify.json"
WINDOW_BYTES = 64 << 20
"""Of a shard that is held in memory at once."""

Row = dict[str, Any]


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
    """Read everything that is committed and compare it with what its commit says. Raises StoreError if it cannot be read."""
    verdict = Verdict()
    plan = read_plan(store)
    rows: list[Row] = []
    for unit in plan.units:
        verdict.units += 1
        path = sidecar_path(unit.name)
        sidecar = _read(store, path, verdict)
        if sidecar is None:
            continue
        facts, table = sidecar_facts(sidecar), sidecar.to_pylist()
        again = {row["id"] for row in table} if unit.retries else set()
        rows = [row for row in rows if row["id"] not in again or not row["reject_kind"]] + table
        counts = {"num_samples": sum(row["shard"] is not None for row in table)}
        counts["num_skips"] = sum(row["skip_reason"] is not None for row in table)
        counts["num_rejects"] = len(table) - sum(counts.values())
        for name, count in counts.items():
            if int(facts[name]) != count:
                problem = f"its metadata says {name} {facts[name]}, it holds {count}"
                verdict.problems.append((path, problem))
        if "shard" in facts:
            verdict.shards += 1
            _check_shard(store, facts, [row for row in table if row["shard"]], verdict)
            if verdict.shards % 100 == 0:
                say(f"{verdict.shards} shards read, {len(verdict.problems)} problems")
    _check_index(store, rows, verdict)
    return verdict


def _read(store: Store, path: str, verdict: Verdict) -> pa.Table | None:
    try:
        return read_parquet(store.get(path))
    except FileNotFoundError:
        verdict.problems.append((path, "missing; if the job did not finish, run it again"))
    except (pa.ArrowException, OSError) as error:  # what Arrow raises for damaged files
        verdict.problems.append((path, f"cannot be read: {str(error).splitlines()[0]}"))
    return None


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


def _check_index(store: Store, rows: list[Row], verdict: Verdict) -> None:
    """The newest index holds the rows of the sidecars, no more and no fewer, and names their shards."""
    index = newest_index(store)
    if index is None:
        verdict.problems.append(("index/", "there is no index: the job has not finished; run it again"))
        return
    indexed: dict[str, Row] = {}
    for path in [*index.samples, *index.rejects, *index.skips]:
        part = _read(store, path, verdict)
        indexed |= {row["id"]: row for row in part.to_pylist()} if part is not None else {}
    for row in rows:
        other = indexed.pop(row["id"], None)
        differing = [name for name in NAMES if other is not None and other[name] != row[name]]
        if other is None or differing:
            where = f"index/{index.generation:04d}.json"
            what = f"differs in {', '.join(differing)}" if differing else "is missing"
            verdict.problems.append((where, f"the row of {row['id']} ({row['key']}) {what}"))
    for name in indexed:
        verdict.problems.append((f"index/{index.generation:04d}.json", f"{name} is in no sidecar"))
    try:
        listed = store.get(index.shards).decode().split()
    except FileNotFoundError:
        listed = []
    if listed != sorted({row["shard"] for row in rows if row["shard"]}):
        verdict.problems.append((index.shards, "does not list the committed shards"))

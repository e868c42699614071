"""Checks that an output is still what was committed: every byte of its shards, and its index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.output.counts import Comparison, Int8Errors
from pipeline.output.dataset import read_dataset
from pipeline.output.index import newest_index
from pipeline.output.index_builder import write_parts
from pipeline.output.index_parts import RowFormat, clip_rows
from pipeline.output.layout.own_files import stray_files
from pipeline.output.members import CHECKSUM
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import in_source_order, unit_metadata_facts, unit_metadata_paths
from pipeline.sources.units import Plan, Unit
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from pipeline.storage.urls import leads_out

PATH = "verify.json"
BLOCK_BYTES = 64 << 20
"""Bytes of a shard that are in memory at once."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """Result of a check: the amounts that were read, and the problems."""

    units: int = 0
    shards: int = 0
    samples: int = 0
    removed: int = 0
    """Number of these samples that the newest edits remove."""
    strings: int = 0
    """Number of embedded strings in layers."""
    size_bytes: int = 0
    int8_errors: Int8Errors | None = None
    """Recorded errors of the samples, in outputs of type int8."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Path and description of each problem."""
    strays: list[str] = field(default_factory=list)
    """Paths of files and folders that this program did not write and passed over."""
    compared: list[Comparison] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 without problems, else 1."""
        return 1 if self.problems else 0

    def save(self, store: Store) -> None:
        """Write the verdict into the output."""
        store.put(PATH, json.dumps(dataclasses.asdict(self), indent=1).encode())


def verify(store: Store, say: Callable[[str], None]) -> Verdict:
    """Read everything that is committed and compare it with what was recorded at its commit. Layers and edits are not read.

    Raises StoreError if the store fails.
    """
    recipe, plan = read_dataset(store).recipe, read_plan(store)
    verdict = Verdict(int8_errors=Int8Errors() if recipe.dtype == "int8" else None)
    check_committed(store, plan, clip_rows(plan, recipe), verdict, say)
    verdict.strays = stray_files(store)
    return verdict


def check_committed(
    store: Store, plan: Plan, row_format: RowFormat, verdict: Verdict, say: Callable[[str], None]
) -> None:
    """Check every unit of a plan, and the index.

    The index is compared with one that is made again on local disk, with few rows in memory at a time.
    """
    shards: set[str] = set()
    with contextlib.ExitStack() as stack:
        units = _checked_units(store, plan, row_format, shards, verdict, say)
        _, parts = write_parts(units, row_format, lambda: stack.enter_context(store.scratch()))
        _check_index(store, parts, shards, row_format, verdict)


def _checked_units(
    store: Store,
    plan: Plan,
    row_format: RowFormat,
    shards: set[str],
    verdict: Verdict,
    say: Callable[[str], None],
) -> Iterator[tuple[Unit, pa.Table]]:
    """Check the metadata and the shard of each unit, and pass on what could be read. Adds to ``shards``."""
    units = in_source_order(plan)
    paths = unit_metadata_paths(store, units)
    for unit, path, metadata in zip(units, paths, map_concurrently(partial(_read, store), paths), strict=True):
        verdict.units += 1
        if isinstance(metadata, str):
            verdict.problems.append((path, metadata))
            continue
        if verdict.int8_errors is not None:
            verdict.int8_errors.add(metadata)
        facts = unit_metadata_facts(metadata)
        counts: Counter[str] = Counter()
        for portion in row_format.split(metadata):
            counts[f"num_{portion.outcome}"] += portion.rows.num_rows
        for name in ("num_samples", "num_skips", "num_rejects"):
            if int(facts[name]) != counts[name]:
                verdict.problems.append((path, f"its facts say {name} {facts[name]}, but it has {counts[name]}"))
        if leads_out(facts.get("shard", "")):
            verdict.problems.append((path, f"the path of its shard leads out of the output: {facts['shard']!r}"))
        elif "shard" in facts:
            shards.add(facts["shard"])
            verdict.shards += 1
            _check_shard(store, facts, _stored_tensors(metadata, row_format), verdict)
            if verdict.shards % 100 == 0:
                say(f"{verdict.shards} shards read, {len(verdict.problems)} problems")
        yield unit, metadata


def _read(store: Store, path: str) -> pa.Table | str:
    """Read a table; a sentence that says what is wrong if it cannot be read."""
    try:
        return read_parquet(store.get(path))
    except FileNotFoundError:
        return "missing; if the job did not finish, run it again"
    except IntegrityError as error:  # the path leads out of the output
        return str(error)
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


def _stored_tensors(metadata: pa.Table, row_format: RowFormat) -> list[_Tensor]:
    """Every tensor of a unit's rows, those of one array after the other."""
    stored = metadata.filter(metadata["shard"].is_valid())
    tensors: list[_Tensor] = []
    for prefix in row_format.arrays:
        place = [f"{prefix}{name}" for name in ("tensor_offset", "tensor_nbytes", CHECKSUM)]
        columns = (stored[name].to_pylist() for name in (row_format.id, row_format.key, *place))
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
        problem = f"its sha256 is {digest.hexdigest()[:16]}..., expected {facts['sha256'][:16]}..."
        verdict.problems.append((shard, problem))
    for tensor, crc32c in sums.items():
        if crc32c != tensor.crc32c:
            problem = f"the tensor of {tensor.id} ({tensor.key}) at {tensor.offset} is damaged"
            verdict.problems.append((shard, problem))
    verdict.samples += int(facts["num_samples"])
    verdict.size_bytes += size


def _blocks(store: Store, path: str, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, size_bytes, BLOCK_BYTES):
        yield start, store.read_ranges(path, [(start, min(BLOCK_BYTES, size_bytes - start))])[0]


def _check_index(
    store: Store, parts: dict[str, Path], shards: set[str], row_format: RowFormat, verdict: Verdict
) -> None:
    """Check that the newest index has the rows of the units' metadata, no more and no fewer, and lists their shards."""
    try:
        index = newest_index(store)
    except IntegrityError as error:
        verdict.problems.append(("index/", str(error)))
        return
    if index is None:
        verdict.problems.append(("index/", "there is no index: the job has not finished; run it again"))
        return
    for outcome, stored in (("samples", index.samples), ("rejects", index.rejects), ("skips", index.skips)):
        expected = [path for name, path in parts.items() if name.startswith(outcome)]
        for difference in _differences(store, expected, stored, row_format, verdict):
            verdict.problems.append((index.path, difference))
    try:
        listed = store.get(index.shards).decode(errors="replace").split()
    except (FileNotFoundError, IntegrityError):
        listed = []
    if listed != sorted(shards):
        verdict.problems.append((index.shards, "does not list the committed shards"))


def _differences(
    store: Store, local: list[Path], stored: list[str], row_format: RowFormat, verdict: Verdict
) -> Iterator[str]:
    """Describe each difference between parts of the index as they should be (``local``) and as they are (``stored``)."""
    id, key = row_format.id, row_format.key
    no_rows = pa.schema([(name, pa.string()) for name in {id: None, key: None}]).empty_table()
    missing: dict[str, str] = {}
    extra: dict[str, str] = {}
    for local_path, path in itertools.zip_longest(local, stored):
        if local_path and path and _same_bytes(store, local_path, path):
            continue  # always the case, unless another version of Arrow wrote the part
        expected = read_parquet(local_path.read_bytes()) if local_path else no_rows
        found = _read(store, path) if path else no_rows
        if isinstance(found, str):
            verdict.problems.append((path, found))
            found = no_rows
        expected = _without_later_columns(expected, found)
        if not expected.equals(found):
            if len(expected) and len(found) and expected.column_names != found.column_names:
                yield f"{path} does not have the columns that it should"
            row_of_id = pc.index_in(expected[id], value_set=found[id])
            missing |= _keys(expected.filter(pc.is_null(row_of_id)), id, key)
            extra |= _keys(found.filter(pc.invert(pc.is_in(found[id], value_set=expected[id]))), id, key)
            both = expected.filter(pc.is_valid(row_of_id)), found.take(row_of_id.drop_null())
            yield from _differing_rows(*both, id, key)
    # where rows are missing, later rows move from one part to another; they are not missing themselves
    for name in missing.keys() - extra.keys():
        yield f"the row of {name} ({missing[name]}) is missing"
    for name in extra.keys() - missing.keys():
        yield f"{name} is in no unit metadata"


def _without_later_columns(expected: pa.Table, found: pa.Table) -> pa.Table:
    """Drop columns without any value that ``found`` lacks: an earlier program, which did not know them, wrote it."""
    names = set(expected.column_names) - set(found.column_names)
    return expected.drop_columns([name for name in names if expected[name].null_count == len(expected)])


def _same_bytes(store: Store, local_path: Path, path: str) -> bool:
    try:
        return store.get(path) == local_path.read_bytes()
    except (FileNotFoundError, IntegrityError):
        return False


def _differing_rows(expected: pa.Table, found: pa.Table, id: str, key: str) -> Iterator[str]:
    """Name each row that differs, with its columns. Both tables have the same ids in the same order."""
    differing: dict[int, list[str]] = {}
    for name in expected.column_names:
        if name not in found.column_names or name.startswith("meta"):
            continue  # user columns may have types that Arrow cannot compare
        a, b = expected[name], found[name]
        if pa.types.is_nested(a.type):
            pairs = zip(a.to_pylist(), b.to_pylist(), strict=True)
            differs: pa.Array | pa.ChunkedArray = pa.array([one != other for one, other in pairs], pa.bool_())
        else:
            differs = pc.fill_null(pc.not_equal(a, b), pc.xor(a.is_null(), b.is_null()))
        for row in pc.indices_nonzero(differs).to_pylist():
            differing.setdefault(row, []).append(name)
    for row, names in differing.items():
        yield f"the row of {expected[id][row]} ({expected[key][row]}) differs in {', '.join(names)}"


def _keys(rows: pa.Table, id: str, key: str) -> dict[str, str]:
    return dict(zip(rows[id].to_pylist(), rows[key].to_pylist(), strict=True))

"""Checks that an output is still what was committed: every byte of its shards, and its index.

Tasks check the shards of some units each, and then the ranges of the index. They run in this process or on a cluster.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipeline.errors import IntegrityError
from pipeline.output.checks.index_range import check_range
from pipeline.output.checks.tables import read_or_describe
from pipeline.output.checks.units import UNITS_PER_TASK, CheckedUnits, check_units
from pipeline.output.counts import Comparison, Int8Errors
from pipeline.output.dataset import read_dataset
from pipeline.output.index import Index, newest_index
from pipeline.output.index_parts import OUTCOMES, RowFormat, clip_rows
from pipeline.output.layout.own_files import stray_files
from pipeline.output.plan import read_plan
from pipeline.output.ranges.cut import IndexRange, cut_into_ranges
from pipeline.output.unit_metadata import in_source_order, newest_revisions, unit_metadata_path
from pipeline.sources.units import Plan
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.storage.store import Store

PATH = "verify.json"
SHARDS_PER_LINE = 100
"""Number of shards after which a line shows how far the check is."""


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


def verify(store: Store, say: Callable[[str], None], map_tasks: MapTasks = map_in_process) -> Verdict:
    """Read everything that is committed and compare it with what was recorded at its commit. Layers and edits are not read.

    Raises StoreError if the store fails.
    """
    recipe, plan = read_dataset(store).recipe, read_plan(store)
    verdict = Verdict(int8_errors=Int8Errors() if recipe.dtype == "int8" else None)
    check_committed(store, plan, clip_rows(plan, recipe), verdict, say, map_tasks)
    verdict.strays = stray_files(store)
    return verdict


def check_committed(
    store: Store,
    plan: Plan,
    row_format: RowFormat,
    verdict: Verdict,
    say: Callable[[str], None],
    map_tasks: MapTasks = map_in_process,
) -> None:
    """Check every unit of a plan, and the index, which is made again range by range."""
    revisions = newest_revisions(store)
    paths = [unit_metadata_path(unit.name, revisions.get(unit.name, 0)) for unit in in_source_order(plan)]
    shards = _check_units(store, paths, row_format, verdict, say, map_tasks)
    try:
        index = newest_index(store)
    except IntegrityError as error:
        verdict.problems.append(("index/", str(error)))
        return
    if index is None:
        verdict.problems.append(("index/", "there is no index: the job has not finished; run it again"))
        return
    tasks = list(_range_tasks(store, index, _covered_part(plan, index, verdict), revisions, verdict))
    results = map_tasks(partial(check_range, store, row_format, index.path), tasks)
    verdict.problems += sorted((path, what) for result in results for path, what in result["problems"])
    _check_list_of_shards(store, index, shards, verdict)


def _check_units(
    store: Store,
    paths: Sequence[str],
    row_format: RowFormat,
    verdict: Verdict,
    say: Callable[[str], None],
    map_tasks: MapTasks,
) -> list[str]:
    """Check the metadata at each path, and its shard. Returns the paths of the shards."""
    tasks = [(first, paths[first : first + UNITS_PER_TASK]) for first in range(0, len(paths), UNITS_PER_TASK)]
    results: list[CheckedUnits] = []
    num_shards = num_problems = 0
    for values in map_tasks(partial(check_units, store, row_format), tasks):
        result = CheckedUnits.from_json(values)
        results.append(result)
        said = num_shards // SHARDS_PER_LINE
        num_shards, num_problems = num_shards + len(result.shards), num_problems + len(result.problems)
        if num_shards // SHARDS_PER_LINE > said:
            say(f"{num_shards} shards read, {num_problems} problems")
    for result in sorted(results, key=lambda result: result.first):  # so that the order of tasks does not show
        verdict.units += result.units
        verdict.shards += len(result.shards)
        verdict.samples += result.samples
        verdict.size_bytes += result.size_bytes
        verdict.problems += result.problems
        if verdict.int8_errors is not None:
            verdict.int8_errors.merge(result.int8_errors)
    return [shard for result in results for shard in result.shards]


def _covered_part(plan: Plan, index: Index, verdict: Verdict) -> Plan:
    """The generations of the plan that an index covers. Later ones are a problem, since the job has not finished."""
    if not index.covers(plan):
        what = f"it has {index.plan_generations} of {len(plan.columns)} generations of the plan: run the job again"
        verdict.problems.append((index.path, what))
    units = [unit for unit in plan.units if unit.generation < index.plan_generations]
    return Plan(units=units, columns=plan.columns[: index.plan_generations])


def _range_tasks(
    store: Store, index: Index, plan: Plan, revisions: dict[str, int], verdict: Verdict
) -> Iterator[tuple[IndexRange, dict[str, list[str]]]]:
    """Yield the ranges that an index has as they should be, with their parts by outcome. Others are problems."""
    parts: dict[str, dict[str, list[str]]] = {folder: _no_parts() for folder in index.ranges.values()}
    for outcome in OUTCOMES:
        for path in getattr(index, outcome):
            folder = path.rpartition("/")[0]
            if folder in parts:
                parts[folder][outcome].append(path)
            else:
                found = read_or_describe(store, path)
                what = found if isinstance(found, str) else "it belongs to none of the ranges of the index"
                verdict.problems.append((path, what))
    for wanted in cut_into_ranges(plan, revisions):
        if wanted.digest in index.ranges:
            yield wanted, parts[index.ranges[wanted.digest]]
        else:
            first, last = wanted.units[0].name, wanted.units[-1].name
            what = (
                f"it lacks the {len(wanted.units)} units from {first} to {last} as they are now: run the command again"
            )
            verdict.problems.append((index.path, f"{what} that was to add or change them"))


def _no_parts() -> dict[str, list[str]]:
    return {outcome: [] for outcome in OUTCOMES}


def _check_list_of_shards(store: Store, index: Index, shards: list[str], verdict: Verdict) -> None:
    try:
        listed = store.get(index.shards).decode(errors="replace").split()
    except (FileNotFoundError, IntegrityError):
        listed = []
    if listed != sorted(shards):
        verdict.problems.append((index.shards, "does not list the committed shards"))

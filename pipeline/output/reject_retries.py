"""Plans rejects again: a new generation of the plan whose units are rejected windows of earlier units."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reject
from pipeline.output.edits.edits import Edits, newest_edits
from pipeline.output.index import Index, newest_index
from pipeline.output.plan import freeze_generation, read_plan
from pipeline.output.purges.purged_rows import columns_to_look_at, is_purged
from pipeline.output.schema import REJECT_COLUMNS, reject_names
from pipeline.sources.formats import FORMATS
from pipeline.sources.units import Plan, Retry, Unit, unit_name
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def plan_retries(store: Store, plan: Plan, name: str, say: Callable[[str], None]) -> Plan:
    """Add a generation to the plan with every reject of a name: ``all``, ``REASON`` or ``STAGE/REASON``.

    Needs a finished output. If planned units are still to do, perhaps those of a retry that was interrupted, the plan
    stays as it is.
    """
    index = newest_index(store)
    if index is None or not index.covers(plan):
        say("units that were planned earlier come first; rejects are tried again once an output is finished")
        return plan
    rejects = _rejects(store, index, newest_edits(store))
    counts = Counter(row["name"] for row in rejects)
    final = {source_format.final_reject for source_format in FORMATS.values()}
    names = {full for full in counts if name in ("all", full, Reject.parse_name(full)[1])} - final
    chosen = [row for row in rejects if row["name"] in names]
    if not chosen:
        existing = ", ".join(f"{full} ({count})" for full, count in counts.most_common()) or "none at all"
        say(f"no rejects named '{name}' to try again; there are {existing}")
        return plan
    units = list(_units(plan, chosen, _items_without_other_rows(store, index, chosen)))
    say(f"{len(chosen)} rejects to try again in {len(units)} units")
    freeze_generation(store, units, pa.unify_schemas(plan.columns), len(plan.columns))
    return read_plan(store)


def _rejects(store: Store, index: Index, edits: Edits) -> list[dict[str, Any]]:
    """The rejects of an index that are not removed. Those that a purge has left no longer say what they were named by."""
    names = ["source", "ordinal", "window", "group", *REJECT_COLUMNS, *columns_to_look_at(edits)]
    tables = (read_parquet(store.get(path), list(dict.fromkeys(names))) for path in index.rejects)
    left = (edits.without_removed(table.filter(pc.invert(is_purged(table)))) for table in tables)
    return [row for table in left for row in table.append_column("name", reject_names(table)).to_pylist()]


def _items_without_other_rows(store: Store, index: Index, rejects: list[dict[str, Any]]) -> set[tuple[str, int]]:
    """Items, as (source, ordinal), whose only row is a reject. All windows of such an item are new."""
    wanted = {(row["source"], row["ordinal"]) for row in rejects}
    ordinals = pa.array({ordinal for _, ordinal in wanted}, pa.int64())
    rows: Counter[tuple[str, int]] = Counter()
    for path in [*index.samples, *index.rejects, *index.skips]:
        table = read_parquet(store.get(path), ["source", "ordinal"])
        table = table.filter(pc.is_in(table["ordinal"], value_set=ordinals))
        rows.update(
            item
            for item in zip(table["source"].to_pylist(), table["ordinal"].to_pylist(), strict=True)
            if item in wanted
        )
    return {item for item in wanted if rows[item] == 1}


def _units(plan: Plan, rejects: list[dict[str, Any]], whole_items: set[tuple[str, int]]) -> Iterator[Unit]:
    """Make a unit for each original unit that has some of the rejects."""
    originals = sorted((unit for unit in plan.units if not unit.retries), key=lambda unit: (unit.source, unit.start))
    starts = [(unit.source, unit.start) for unit in originals]
    windows_by_unit: dict[str, tuple[Unit, dict[int, set[tuple[int, str]]]]] = {}
    for row in rejects:
        unit = originals[bisect_right(starts, (row["source"], row["ordinal"])) - 1]
        windows = windows_by_unit.setdefault(unit.name, (unit, {}))[1].setdefault(row["ordinal"], set())
        if (row["source"], row["ordinal"]) not in whole_items:
            windows.add((row["window"], row.get("group") or ""))
    generation = len(plan.columns)
    for unit, items in windows_by_unit.values():
        retries = tuple(_retry(ordinal, items[ordinal]) for ordinal in sorted(items))
        name = unit_name(unit.name.rpartition("-")[0], unit.source, unit.start, unit.stop, generation)
        yield dataclasses.replace(unit, name=name, generation=generation, retries=retries)


def _retry(ordinal: int, windows: set[tuple[int, str]]) -> Retry:
    """Make the retry of an item from the index and group of each window; of the whole item without windows."""
    indices, groups = zip(*sorted(windows), strict=True) if windows else ((), ())
    return Retry(ordinal=ordinal, windows=indices, groups=groups if any(groups) else ())

"""Rejects tried again: a generation of the plan whose units hold rejected windows of earlier units."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reject
from pipeline.output.index import Index, newest_index
from pipeline.output.plan import freeze_generation, read_plan
from pipeline.output.schema import REJECT_COLUMNS, reject_names
from pipeline.sources.units import Plan, Retry, Unit, unit_name
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

REST_OF_A_TAR = "read/damaged_tar"
"""A reject that stands for all items from there on. The tar is still the one that was planned, so it is still damaged."""


def plan_retries(store: Store, plan: Plan, name: str, say: Callable[[str], None]) -> Plan:
    """Plan every reject of ``name`` once more, as a new generation. ``name``: ``all``, ``REASON`` or ``STAGE/REASON``.

    Applies to a finished output. Where planned units are still to do, perhaps of a retry that was interrupted, those
    come first and the plan stays as it is.
    """
    index = newest_index(store)
    if index is None or not index.covers(plan):
        say("units that were planned earlier come first; rejects are tried again once an output is finished")
        return plan
    rejects = _rejects(store, index)
    counts = Counter(row["name"] for row in rejects)
    names = {found for found in counts if name in ("all", found, Reject.parse_name(found)[1])} - {REST_OF_A_TAR}
    chosen = [row for row in rejects if row["name"] in names]
    if not chosen:
        found = ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none at all"
        say(f"no rejects named '{name}' to try again; there are {found}")
        return plan
    whole = _items_without_other_rows(store, index, chosen)
    units = list(_units(plan, chosen, whole))
    say(f"{len(chosen)} rejects to try again in {len(units)} units")
    freeze_generation(store, units, pa.unify_schemas(plan.columns), len(plan.columns))
    return read_plan(store)


def _rejects(store: Store, index: Index) -> list[dict[str, Any]]:
    columns = ["source", "ordinal", "window", *REJECT_COLUMNS]
    tables = (read_parquet(store.get(path), columns) for path in index.rejects)
    return [row for table in tables for row in table.append_column("name", reject_names(table)).to_pylist()]


def _items_without_other_rows(store: Store, index: Index, rejects: list[dict[str, Any]]) -> set[tuple[str, int]]:
    """Items that ended as one reject: whatever windows they turn out to have are new."""
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


def _units(plan: Plan, rejects: list[dict[str, Any]], whole: set[tuple[str, int]]) -> Iterator[Unit]:
    """A unit for each earlier one that has chosen rejects."""
    first = sorted((unit for unit in plan.units if not unit.retries), key=lambda unit: (unit.source, unit.start))
    starts = [(unit.source, unit.start) for unit in first]
    found: dict[str, tuple[Unit, dict[int, set[int]]]] = {}
    for row in rejects:
        unit = first[bisect_right(starts, (row["source"], row["ordinal"])) - 1]
        windows = found.setdefault(unit.name, (unit, {}))[1].setdefault(row["ordinal"], set())
        if (row["source"], row["ordinal"]) not in whole:
            windows.add(row["window"])
    generation = len(plan.columns)
    for unit, items in found.values():
        retries = tuple(Retry(ordinal=o, windows=tuple(sorted(items[o]))) for o in sorted(items))
        name = unit_name(unit.name.rpartition("-")[0], unit.source, unit.start, unit.stop, generation)
        yield dataclasses.replace(unit, name=name, generation=generation, retries=retries)

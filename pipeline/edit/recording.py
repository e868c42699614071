"""Records a new generation of edits: everything that is removed so far, with what a request adds or an undo takes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.edit.request import Request
from pipeline.edit.selection import Row, select
from pipeline.environment import time_now, user_name
from pipeline.errors import ConfigError
from pipeline.output.edits.edits import MATCHED, SCHEMA, Edits, edits_path, newest_edits, read_edits
from pipeline.output.purges.record import newest_purge
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import write_parquet
from pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The outcome of a request or an undo."""

    edits: Edits
    """The generation that was recorded; the newest one, if there was nothing to record."""
    recorded: bool
    samples: int = 0
    """Number of committed samples that a request names."""
    already: int = 0
    """Number of ids and items that were removed before."""
    pending: list[str] = field(default_factory=list)
    """Names that no committed row has, but that units which are not committed may have."""
    missing: list[str] = field(default_factory=list)
    """Names that are not there. They are not recorded."""
    note: str = ""
    """Why an undo had nothing to record."""


def remove(store: Store, request: Request) -> Change:
    """Record a generation of edits in which everything that a request names is removed. Safe to call again.

    Two calls at once give two generations: the one that comes second adds to the first.
    """
    selection = select(store, request)
    already = 0

    def add(edits: Edits) -> pa.Table:
        nonlocal already
        new = [row for row in selection.rows if not _is_in(edits, row)]
        already = len(selection.rows) - len(new)
        facts = {"reason": request.reason, "time": now, "generation": _next(edits)}
        return pa.concat_tables([edits.rows, pa.Table.from_pylist([row | facts for row in new], schema=SCHEMA)])

    now = time_now()
    edits, recorded = _record(store, add, "remove", request.selection, request.reason, now)
    return Change(
        edits=edits,
        recorded=recorded,
        samples=selection.samples,
        already=already,
        pending=selection.pending,
        missing=selection.missing,
    )


def undo(store: Store, generation: int | None) -> Change:
    """Record a generation of edits without what an earlier one removed; None for the newest one. Safe to call again.

    Nothing is recorded if that is taken back already, or if the newest generation is an undo itself. ConfigError if the
    generation removed nothing, or was purged.
    """
    edits = newest_edits(store)
    removals = sorted(set(edits.rows["generation"].to_pylist()))
    others = f"generations that can be taken back: {', '.join(map(str, removals)) or 'none'}"
    if generation is None:
        if edits.generation is None:
            raise ConfigError(f"nothing is removed from {store.url}")
        if edits.facts["action"] == "undo":
            note = f"the newest edits are the undo of {edits.facts['selection']} already; {others}"
            return Change(edits=edits, recorded=False, note=note)
        generation = edits.generation
    if generation not in removals:
        if not _removed_something(store, generation):
            raise ConfigError(f"generation {generation} removed nothing; {others}")
        note = f"nothing of generation {generation} is removed any more; {others}"
        return Change(edits=edits, recorded=False, note=note)

    purge = newest_purge(store)
    if purge is not None and generation <= purge.edits:
        raise ConfigError(
            f"what generation {generation} removed cannot come back: {purge.name} has deleted the data of everything that "
            f"was removed up to generation {purge.edits}"
        )

    def take_back(edits: Edits) -> pa.Table:
        return edits.rows.filter(pc.not_equal(edits.rows["generation"], generation))

    edits, recorded = _record(store, take_back, "undo", f"generation {generation}", "", time_now())
    return Change(edits=edits, recorded=recorded)


def _record(
    store: Store, change: Callable[[Edits], pa.Table], action: str, selection: str, reason: str, now: str
) -> tuple[Edits, bool]:
    """Record the rows that ``change`` makes of the newest edits, and try again on top of what another job records first.

    Returns the newest edits, and whether they are new.
    """
    edits = newest_edits(store)
    while True:
        rows = change(edits)
        if len(rows) == len(edits.rows):
            return edits, False
        facts = {
            "format_version": str(FORMAT_VERSION),
            "action": action,
            "selection": selection,
            "reason": reason,
            "by": user_name(),
            "time": now,
            "count": str(abs(len(rows) - len(edits.rows))),
        }
        number = _next(edits)
        content = write_parquet(rows.combine_chunks().replace_schema_metadata(facts))
        created = store.put_new(edits_path(number), content)
        if created or store.get(edits_path(number)) == content:  # our own, if the store's answer was lost
            failpoint(Failpoint.EDITS_RECORDED)
            return Edits(generation=number, rows=rows, facts=facts), True
        edits = newest_edits(store, edits)


def _removed_something(store: Store, generation: int) -> bool:
    try:
        return read_edits(store, generation).facts["action"] == "remove"
    except FileNotFoundError:
        return False


def _next(edits: Edits) -> int:
    return 0 if edits.generation is None else edits.generation + 1


def _is_in(edits: Edits, row: Row) -> bool:
    """Tell if a row of a selection is removed already."""
    if row.get("id") is not None:
        if row["id"] in edits.ids:
            return True
        if "source" not in row:
            return False
    named = {name: row[name] for name in MATCHED if row.get(name) is not None}
    return any(
        set(names) <= set(named) and tuple(named[name] for name in names) in wanted
        for names, wanted in edits.items.items()
    )

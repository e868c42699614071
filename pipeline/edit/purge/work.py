"""The work of a purge that can be done anywhere: looking at units, and rewriting them. Locally, or as tasks on Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.output.edits.edits import read_edits
from pipeline.output.purges.record import read_purge
from pipeline.output.purges.unit_purge import purge_unit, units_with_data
from pipeline.storage.concurrency import MapTasks
from pipeline.storage.store import Store

UNITS_PER_LOOK = 200
"""Number of units that one task looks at. It reads a few columns of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An output to purge, as its tasks open it."""

    url: str
    single_writer: bool

    def open(self) -> Store:
        """Open the output."""
        return Store(self.url, single_writer=self.single_writer)


def find_units(place: Place, edits: int, paths: Sequence[str], map_tasks: MapTasks) -> list[str]:
    """Paths, among those of unit metadata, of units with removed rows that still have data; sorted."""
    portions = [list(paths[start : start + UNITS_PER_LOOK]) for start in range(0, len(paths), UNITS_PER_LOOK)]
    results = map_tasks(partial(_look, place, edits), portions)
    return sorted(path for result in results for path in result["paths"])


def purge_units(place: Place, purge: int, paths: Sequence[str], map_tasks: MapTasks) -> Iterable[dict[str, Any]]:
    """Purge units, given by the paths of their newest metadata; the path of each new revision."""
    return map_tasks(partial(_purge, place, purge), paths)


def _look(place: Place, edits: int, paths: list[str]) -> dict[str, Any]:
    store = place.open()
    return {"paths": list(units_with_data(store, paths, read_edits(store, edits)))}


def _purge(place: Place, number: int, path: str) -> dict[str, Any]:
    store = place.open()
    purge = read_purge(store, number)
    return {"path": purge_unit(store, path, read_edits(store, purge.edits), purge)}

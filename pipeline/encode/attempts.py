"""Records of attempts: they keep jobs from working on the same unit, and find the clip that crashes the encoder.

A job writes ``attempts/<unit>/<job>-<n>.json`` when it begins its n-th attempt at a unit (n from 0), and removes the
records once the unit is committed. If a job finds a record of its own, then the encoder crashed during that attempt,
unless the node was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pipeline.errors import LatentmillError, StoreError
from pipeline.output.layout.own_files import ATTEMPT
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

FOLDER = "attempts"
MAX_CRASHES_ALONE = 3
"""Number of crashes with one clip alone in the VAE after which that clip is rejected."""
MAX_UNEXPLAINED_CRASHES = 5
"""Number of crashes during one unit with nothing in the VAE after which the job stops, so that it does not loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One record: an attempt at a unit, and what was in the VAE when the record was last written."""

    node: str
    """Id of the encoder's Ray node; empty without Ray."""
    in_flight: tuple[str, ...] = ()
    """Ids of the samples in the VAE. Recorded only after a first crash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashHistory:
    """Instructions for the next attempt at a unit, from earlier crashes."""

    number: int = 0
    """Number of the next attempt, from 0."""
    careful: bool = False
    """True: encode nothing else at the same time, and record what is in the VAE."""
    isolate: frozenset[str] = frozenset()
    """Ids of samples that were in the VAE at a crash. They are encoded one by one."""
    skipped_ids: frozenset[str] = frozenset()
    """Ids of samples that were alone in the VAE at ``MAX_CRASHES_ALONE`` crashes. They are rejected."""


class Attempts:
    """One job's records in an output. ``is_alive`` tells whether a Ray node still runs."""

    def __init__(self, store: Store, job: str, node: str, is_alive: Callable[[str], bool]) -> None:
        self._store = store
        self._job = job
        self._node = node
        self._is_alive = is_alive

    def begun_by_another_job(self, unit: str, ignored: Collection[str]) -> bool:
        """Tell if another job has a record of this unit that is not among the ``ignored`` file names.

        A hint only, since listings may lag.
        """
        paths = map(ATTEMPT.fullmatch, self._store.list_files(f"{FOLDER}/{unit}"))
        names = {match[2] for match in paths if match}
        return any(not name.startswith(f"{self._job}-") for name in names.difference(ignored))

    def crash_history(self, unit: str) -> CrashHistory:
        """Read this job's records of the unit. Attempts on lost nodes are not crashes.

        Raises LatentmillError if the encoder keeps crashing with nothing in the VAE, since no clip is the cause.
        """
        earlier = self._read(unit)
        crashes = [attempt for attempt in earlier if self._is_alive(attempt.node)]
        if sum(not attempt.in_flight for attempt in crashes) >= MAX_UNEXPLAINED_CRASHES:
            raise LatentmillError(
                f"the encoder has crashed {len(crashes)} times during unit {unit}, but never while it encoded: check "
                "its log and the memory of its node, then run the same command again"
            )
        alone = Counter(attempt.in_flight[0] for attempt in crashes if len(attempt.in_flight) == 1)
        return CrashHistory(
            number=len(earlier),
            careful=bool(crashes),
            isolate=frozenset(id for attempt in crashes for id in attempt.in_flight),
            skipped_ids=frozenset(id for id, count in alone.items() if count >= MAX_CRASHES_ALONE),
        )

    def begin(self, unit: str, number: int) -> None:
        """Record that this job begins an attempt at the unit."""
        self.record(unit, number, [])
        failpoint(Failpoint.ATTEMPT_RECORDED)

    def record(self, unit: str, number: int, in_flight: list[str]) -> None:
        """Record the ids of the samples that are in the VAE from now on; none when they have come back."""
        attempt = Attempt(node=self._node, in_flight=tuple(in_flight))
        self._store.put(self._path(unit, number), json.dumps(dataclasses.asdict(attempt)).encode())

    def end(self, unit: str, number: int) -> None:
        """Remove this job's records of a committed unit, those of attempts 0 to ``number``."""
        for n in range(number + 1):
            self._store.delete(self._path(unit, n))

    def withdraw(self, unit: str, number: int) -> None:
        """Remove the record of an attempt that ended with an error, which is no crash. It stays if the store fails now."""
        with contextlib.suppress(StoreError):
            self._store.delete(self._path(unit, number))

    def _read(self, unit: str) -> list[Attempt]:
        """This job's records of the unit, by number."""
        found: list[Attempt] = []
        while True:
            try:
                values = json.loads(self._store.get(self._path(unit, len(found))))
            except FileNotFoundError:
                return found
            found.append(Attempt(node=values["node"], in_flight=tuple(values["in_flight"])))

    def _path(self, unit: str, number: int) -> str:
        return f"{FOLDER}/{unit}/{self._job}-{number}.json"


def list_attempts(store: Store) -> dict[str, list[str]]:
    """File names of all records in an output, by unit. Listings may lag."""
    names: dict[str, list[str]] = {}
    for match in filter(None, map(ATTEMPT.fullmatch, store.list_files(FOLDER))):
        names.setdefault(match[1], []).append(match[2])
    return names


def remove_attempts(store: Store, committed: set[str]) -> None:
    """Remove the records that dead jobs left of units that are committed now."""
    for match in filter(None, map(ATTEMPT.fullmatch, store.list_files(FOLDER))):
        if match[1] in committed:
            store.delete(match[0])
            failpoint(Failpoint.ATTEMPT_REMOVED)
    store.remove_empty(FOLDER)


def current_node() -> str:
    """Id of this process's Ray node; empty without Ray."""
    ray = _ray()
    return ray.get_runtime_context().get_node_id() if ray else ""


def is_node_alive(node: str) -> bool:
    """Tell if a Ray node still runs; False without Ray."""
    ray = _ray()
    return ray is not None and any(other["NodeID"] == node and other["Alive"] for other in ray.nodes())


def _ray() -> Any:
    """Ray, if this process has connected to it."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None

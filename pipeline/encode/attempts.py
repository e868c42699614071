"""Who has begun which unit: how jobs keep out of each other's way, and how a clip that kills its encoder is found.

``attempts/<unit>/<job>-<n>.json`` is written when a job begins a unit for the n-th time and removed once the unit is
committed. A record that a job finds of its own means that the encoder died over the unit, unless its node was lost.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.errors import LatentmillError
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

FOLDER = "attempts"
MAX_CRASHES_ALONE = 3
"""Deaths of the encoder, with one clip alone in flight, after which that clip is rejected."""
MAX_UNEXPLAINED_CRASHES = 5
"""Deaths over one unit with nothing in flight, after which the job stops rather than go on for ever."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A start of a unit, and what was in the VAE when it was last heard of."""

    node: str
    """Of the encoder; empty without Ray."""
    in_flight: tuple[str, ...] = ()
    """Ids of the samples, noted from the second attempt on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashHistory:
    """What earlier deaths over a unit ask of the next attempt."""

    number: int = 0
    """Of the next attempt."""
    careful: bool = False
    """Encode nothing else meanwhile, and note what is in flight."""
    isolate: frozenset[str] = frozenset()
    """Ids that were in flight at a death: encode them one by one."""
    skipped_ids: frozenset[str] = frozenset()
    """Ids that were alone in flight at ``MAX_CRASHES_ALONE`` deaths: reject them."""


class Attempts:
    """One job's records in an output. ``is_alive`` tells whether a node still runs."""

    def __init__(self, store: Store, job: str, node: str, is_alive: Callable[[str], bool]) -> None:
        self._store = store
        self._job = job
        self._node = node
        self._is_alive = is_alive

    def of_others(self, unit: str, known: Collection[str]) -> bool:
        """Whether another job has begun this unit, apart from ``known`` attempts; a hint, since listings may lag."""
        names = {path.rpartition("/")[2] for path in self._store.list_files(f"{FOLDER}/{unit}")}
        return any(not name.startswith(f"{self._job}-") for name in names.difference(known))

    def crash_history(self, unit: str) -> CrashHistory:
        """What this job's earlier attempts at the unit say. The deaths of nodes are nobody's fault.

        LatentmillError if the encoder keeps dying with nothing in flight: no clip could be blamed.
        """
        earlier: list[Attempt] = []
        while True:
            try:
                values = json.loads(self._store.get(self._path(unit, len(earlier))))
            except FileNotFoundError:
                break
            earlier.append(Attempt(node=values["node"], in_flight=tuple(values["in_flight"])))
        deaths = [attempt for attempt in earlier if self._is_alive(attempt.node)]
        if sum(not attempt.in_flight for attempt in deaths) >= MAX_UNEXPLAINED_CRASHES:
            raise LatentmillError(
                f"the encoder has died {len(deaths)} times over unit {unit}, but never while it encoded: look at the "
                "memory of its node and at its log, then run the same command again"
            )
        alone = Counter(attempt.in_flight[0] for attempt in deaths if len(attempt.in_flight) == 1)
        return CrashHistory(
            number=len(earlier),
            careful=bool(deaths),
            isolate=frozenset(name for attempt in deaths for name in attempt.in_flight),
            skipped_ids=frozenset(name for name, count in alone.items() if count >= MAX_CRASHES_ALONE),
        )

    def begin(self, unit: str, number: int) -> None:
        """Record that this job begins the unit now."""
        self.note(unit, number, [])
        failpoint(Failpoint.ATTEMPT_RECORDED)

    def note(self, unit: str, number: int, in_flight: list[str]) -> None:
        """Record what goes into the VAE; nothing when it has come back."""
        attempt = Attempt(node=self._node, in_flight=tuple(in_flight))
        self._store.put(self._path(unit, number), json.dumps(dataclasses.asdict(attempt)).encode())

    def end(self, unit: str, number: int) -> None:
        """Remove this job's records of a unit that is committed."""
        for n in range(number + 1):
            self._store.delete(self._path(unit, n))

    def _path(self, unit: str, number: int) -> str:
        return f"{FOLDER}/{unit}/{self._job}-{number}.json"


def begun_units(store: Store) -> dict[str, list[str]]:
    """Units that some job has begun and not committed, with the names of the records, as far as a listing tells."""
    begun: dict[str, list[str]] = {}
    for path in store.list_files(FOLDER):
        _, unit, name = path.split("/")
        begun.setdefault(unit, []).append(name)
    return begun


def remove_attempts(store: Store, committed: set[str]) -> None:
    """Remove what dead jobs recorded of units that are committed now."""
    for path in store.list_files(FOLDER):
        if path.split("/")[1] in committed:
            store.delete(path)
            failpoint(Failpoint.ATTEMPT_REMOVED)
    store.remove_empty(FOLDER)


def where_this_runs() -> tuple[str, Callable[[str], bool]]:
    """The Ray node of this process (empty without Ray), and what tells whether a node is alive."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "", lambda node: False
    return ray.get_runtime_context().get_node_id(), lambda node: any(
        other["NodeID"] == node and other["Alive"] for other in ray.nodes()
    )

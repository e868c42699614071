"""What an encoder is given: a unit, in which order, and how many at a time."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.sources.formats import format_of
from pipeline.sources.units import Unit

SHARE = 2000
"""A block is at most this part of the tasks that are left, so that all of them are few blocks."""
BLOCKS_EACH = 8
"""But an encoder's thread must find so many blocks left, so that none is at work when all others have ended."""


class Task(NamedTuple):
    """A unit for an encoder."""

    unit: Unit
    known: Sequence[str] = ()
    """Attempts of other jobs that are dead, or have had their time. A newer one's unit is left to it."""


def pack(tasks: list[Task]) -> bytes:
    """For Ray: JSON, a tenth as long. A unit of a folder names all of its files."""
    rows = [{"unit": task.unit.to_json(), "known": list(task.known)} for task in tasks]
    return zlib.compress(json.dumps(rows).encode(), 1)


def unpack(packed: bytes) -> list[Task]:
    """The tasks that ``pack`` wrote."""
    return [Task(Unit.from_json(row["unit"]), row["known"]) for row in json.loads(zlib.decompress(packed))]


def in_order(units: list[Unit], begun: dict[str, list[str]], job: str) -> list[Task]:
    """The longest tenth first, so that none of them ends the job alone; last those that another job has begun, which
    is dead or will have committed them by then. All in this job's own order."""
    fresh = sorted((unit for unit in units if unit.name not in begun), key=lambda unit: -format_of(unit).cost(unit))
    longest, rest = fresh[: len(fresh) // 10], fresh[len(fresh) // 10 :]
    others = [unit for unit in units if unit.name in begun]
    for part in (longest, rest, others):
        random.Random(job).shuffle(part)
    return [Task(unit, begun.get(unit.name, ())) for unit in longest + rest + others]


def in_blocks(tasks: list[Task], threads: int) -> Iterator[list[Task]]:
    """The same tasks in order, many at a time at first and one by one at the end: the number of blocks, each of which
    costs the driver time and memory before anything begins, grows with the logarithm of that of the tasks.

    ``threads`` is how many blocks are worked on at once (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """
    share = max(SHARE, BLOCKS_EACH * threads)
    start = 0
    while start < len(tasks):
        stop = start + max(1, (len(tasks) - start) // share)
        yield tasks[start:stop]
        start = stop

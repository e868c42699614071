"""Tasks for encoders: their order, and the blocks in which Ray hands them over."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.encode.unit_encoder import EncoderMaker
from pipeline.encode.unit_report import Heartbeats, UnitReport
from pipeline.sources.formats import cost_of
from pipeline.sources.units import Unit

MAX_BLOCK_SHARE = 2000
"""A block holds at most 1 / this of the remaining tasks."""
MIN_BLOCKS_PER_THREAD = 8
"""Keep at least this many blocks per encoder thread, so that all threads finish together."""


class Task(NamedTuple):
    """A unit to encode."""

    unit: Unit
    ignored_attempts: Sequence[str] = ()
    """File names of other jobs' attempts that do not count, since those jobs are dead or have had their time. If a job
    has begun a newer attempt, the unit is left to that job."""


Executor = Callable[[Sequence[Task], EncoderMaker, Heartbeats], Iterator[UnitReport]]
"""Encodes tasks, connects the heartbeats of its encoders, and yields the report of every unit when the unit has ended.

After ``heartbeats.stop`` the units in flight end within seconds, with the outcome ``stopped``.
"""


def pack(tasks: Sequence[Task]) -> bytes:
    """Tasks as compressed JSON for Ray. It is a tenth as long, since a folder's units name all of their files."""
    rows = [{"unit": task.unit.to_json(), "ignored_attempts": list(task.ignored_attempts)} for task in tasks]
    return zlib.compress(json.dumps(rows).encode(), 1)


def unpack(packed: bytes) -> list[Task]:
    """The tasks that ``pack`` wrote."""
    return [Task(Unit.from_json(row["unit"]), row["ignored_attempts"]) for row in json.loads(zlib.decompress(packed))]


def in_order(units: Sequence[Unit], attempts: Mapping[str, Sequence[str]], job: str) -> list[Task]:
    """Tasks in the order in which a job should encode them.

    Order: the longest 10 % first, so that none of them is alone at the end; then the rest; then the units that another
    job has begun, since that job is dead or will have committed them by then. Each part is shuffled by the job's name, so
    that two jobs on one output begin with different units. ``attempts``: file names of records by unit.
    """
    fresh = sorted((unit for unit in units if unit.name not in attempts), key=lambda unit: -cost_of(unit))
    longest, rest = fresh[: len(fresh) // 10], fresh[len(fresh) // 10 :]
    begun = [unit for unit in units if unit.name in attempts]
    for part in (longest, rest, begun):
        random.Random(job).shuffle(part)
    return [Task(unit, attempts.get(unit.name, ())) for unit in longest + rest + begun]


def in_blocks(tasks: Sequence[Task], threads: int) -> Iterator[Sequence[Task]]:
    """Cut tasks into blocks that get smaller towards the end. Each block costs the driver time and memory.

    Shape: ``[1, n]`` tasks per block; the number of blocks grows with the logarithm of the number of tasks.
    Invariant: a block is at most 1 / max(2000, 8 * threads) of what remains, but at least one task.
    Example: 10,000 tasks and 2 threads give blocks of 5, then 4, 3, 2, and of 1 once fewer than 4,000 tasks remain.

    ``threads`` is the number of blocks in work at once. Source: guided self-scheduling, Polychronopoulos and Kuck 1987.
    """
    share = max(MAX_BLOCK_SHARE, MIN_BLOCKS_PER_THREAD * threads)
    start = 0
    while start < len(tasks):
        stop = start + max(1, (len(tasks) - start) // share)
        yield tasks[start:stop]
        start = stop

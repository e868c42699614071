"""Removes what dead jobs left in a finished output. What cannot be removed stays: it is no part of the output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeline.encode.attempts import remove_attempts
from pipeline.errors import LatentmillError
from pipeline.output.index import Index
from pipeline.output.ranges.orphans import remove_orphan_parts, remove_orphans
from pipeline.output.unit_metadata import unit_of
from pipeline.storage.store import Store


def clean_up(store: Store, units: set[str], index: Index) -> list[str]:
    """Remove what dead jobs left of committed units. Returns a sentence per step that failed, with the store's words.

    A store or a role may not offer every request of this, which must not end a job whose output is complete.
    """
    steps: list[tuple[str, Callable[[], None]]] = [
        ("shards of attempts that lost were not removed", partial(remove_orphans, store, units, index)),
        ("parts of unfinished indexes were not removed", partial(remove_orphan_parts, store)),
        (
            "unfinished uploads were not looked for, so let a rule of the bucket abort them",
            partial(store.abort_uploads, "shards", lambda path: unit_of(path) in units),
        ),
        ("records of earlier attempts were not removed", partial(remove_attempts, store, units)),
        ("scratch files of earlier jobs were not removed", store.sweep),
    ]
    problems = []
    for what, step in steps:
        try:
            step()
        except (LatentmillError, OSError) as error:
            problems.append(f"{what}: {error}")
    return problems

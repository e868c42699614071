"""Work of jobs that read the whole output and write what they found, such as a report, while a purge may run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StoreError
from pipeline.output.purges.record import is_finished, newest_purge
from pipeline.storage.store import Store

T = TypeVar("T")


def beside_purges(store: Store, work: Callable[[], T]) -> T:
    """Do work, and do it again if a purge was begun or finished meanwhile: it may have read what the purge has taken.

    StoreError, instead of FileNotFoundError, if a purge that still runs deletes what the work reads.
    """
    while True:
        before = _state(store)
        try:
            result = work()
        except FileNotFoundError as error:
            if _state(store) != before:
                continue
            if before is None or before[1]:
                raise
            raise StoreError(
                f"{error}: purge {before[0]} is deleting files; run the same command again after it"
            ) from error
        if _state(store) == before:
            return result


def _state(store: Store) -> tuple[int, bool] | None:
    """Number of the newest purge, and whether it is finished."""
    purge = newest_purge(store)
    return None if purge is None else (purge.number, is_finished(store, purge))

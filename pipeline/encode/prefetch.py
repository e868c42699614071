"""Decoding ahead: several items are decoded at once, and their outcomes come out in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from typing import Generic, TypeVar

from pipeline.encode.utilization import Activity

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")

CLIPS_AHEAD = 2
"""Number of decoded clips that may wait per item in flight."""
STOP_CHECK_S = 0.2
"""Seconds after which a thread with a full queue checks whether it should stop."""


class _ItemInFlight(Generic[ItemT, OutcomeT]):
    """An item that a thread decodes, with the outcomes that are ready."""

    def __init__(self, item: ItemT, known: list[OutcomeT] | None) -> None:
        self.item = item
        self.known = known
        """Its outcomes, if they are known without work: then no thread decodes it."""
        self.fetched = threading.Event()
        """Set when the item's bytes are there, or when it is known that they never will be."""
        self.outcomes: Queue[OutcomeT | BaseException | None] = Queue(CLIPS_AHEAD)
        """Outcomes in order, then None or the error that ended the decoding."""


def decode_in_order(
    items: Iterator[ItemT],
    decode: Callable[[ItemT, Callable[[], None]], Iterator[OutcomeT]],
    ahead: int,
    enter: Callable[[Activity], None] = lambda activity: None,
    outcomes_without_work: Callable[[ItemT], list[OutcomeT] | None] = lambda item: None,
) -> Generator[tuple[ItemT, OutcomeT], None, None]:
    """Yield every outcome of every item in order. ``ahead`` items are decoded at once, each by a thread of its own.

    ``outcomes_without_work(item)`` returns the outcomes of an item that needs no thread, else None.
    ``decode(item, fetched)`` yields an item's outcomes. It should call ``fetched`` once it has the item's bytes or knows
    that it will never have them. ``enter`` is called with what the caller waits for: ``FETCH`` or ``DECODE``. An error in
    ``items`` or ``decode`` is raised here, when its turn comes. Close the iterator early to end its threads.
    """
    stop = threading.Event()
    in_flight: deque[_ItemInFlight[ItemT, OutcomeT]] = deque()
    with ThreadPoolExecutor(ahead) as pool:
        enter(Activity.FETCH)
        try:
            for item in items:
                known = outcomes_without_work(item)
                if known is not None and not in_flight:  # such items come by the million in hostile tars
                    yield from ((item, outcome) for outcome in known)
                    continue
                in_flight.append(_ItemInFlight(item, known))
                if known is None:
                    pool.submit(_decode_item, in_flight[-1], decode, stop)
                if len(in_flight) == ahead:
                    yield from _outcomes(in_flight.popleft(), enter)
            while in_flight:
                yield from _outcomes(in_flight.popleft(), enter)
        finally:
            stop.set()


def _decode_item(
    in_flight: _ItemInFlight[ItemT, OutcomeT],
    decode: Callable[[ItemT, Callable[[], None]], Iterator[OutcomeT]],
    stop: threading.Event,
) -> None:
    try:
        for outcome in decode(in_flight.item, in_flight.fetched.set):
            _put(in_flight, outcome, stop)
            if stop.is_set():
                return
        _put(in_flight, None, stop)
    except BaseException as error:  # ``_outcomes`` raises it in the caller's thread
        _put(in_flight, error, stop)


def _put(
    in_flight: _ItemInFlight[ItemT, OutcomeT], value: OutcomeT | BaseException | None, stop: threading.Event
) -> None:
    in_flight.fetched.set()
    while not stop.is_set():
        try:
            in_flight.outcomes.put(value, timeout=STOP_CHECK_S)
            return
        except Full:
            continue


def _outcomes(
    in_flight: _ItemInFlight[ItemT, OutcomeT], enter: Callable[[Activity], None]
) -> Iterator[tuple[ItemT, OutcomeT]]:
    if in_flight.known is not None:
        yield from ((in_flight.item, outcome) for outcome in in_flight.known)
        return
    in_flight.fetched.wait()
    while True:
        enter(Activity.DECODE)
        value = in_flight.outcomes.get()
        if isinstance(value, BaseException):
            raise value
        if value is None:
            enter(Activity.FETCH)
            return
        yield in_flight.item, value

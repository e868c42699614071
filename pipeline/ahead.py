"""Items decoded ahead of their turn, by threads that each drive a decoding child."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue

from pipeline.decode import Decoded
from pipeline.items import Item
from pipeline.occupancy import Stage

CLIPS_AHEAD = 2
"""Decoded clips that wait per video in flight."""


class _Lane:
    """What comes of one item: first that its bytes are there, then its outcomes, then None or an error."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.fetched = threading.Event()
        self.outcomes: Queue[Decoded | BaseException | None] = Queue(CLIPS_AHEAD)


Decode = Callable[[Item, Callable[[], None]], Iterator[Decoded]]
"""Outcomes of an item; calls the second argument when it has, or will never have, the item's bytes."""


def decode_in_order(
    found: Iterator[Item], decode: Decode, ahead: int, enter: Callable[[Stage], None]
) -> Iterator[tuple[Item, Decoded]]:
    """Outcomes of every item in order, with ``ahead`` items being decoded at once and a few clips of each waiting.

    ``enter`` is told what the caller waits for: ``FETCH`` or ``DECODE``.
    """
    stop = threading.Event()
    lanes: deque[_Lane] = deque()

    def put(lane: _Lane, value: Decoded | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return lane.outcomes.put(value, timeout=0.2)
            except Full:
                continue

    def work(lane: _Lane) -> None:
        try:
            for decoded in decode(lane.item, lane.fetched.set):
                put(lane, decoded)
                if stop.is_set():
                    return
            put(lane, None)
        except BaseException as error:  # handed to the consumer, who raises it
            lane.fetched.set()
            put(lane, error)

    def drain() -> Iterator[tuple[Item, Decoded]]:
        lane = lanes.popleft()
        lane.fetched.wait()
        while True:
            enter(Stage.DECODE)
            value = lane.outcomes.get()
            if isinstance(value, BaseException):
                raise value
            if value is None:
                return enter(Stage.FETCH)
            yield lane.item, value

    with ThreadPoolExecutor(ahead) as pool:
        enter(Stage.FETCH)
        try:
            for item in found:
                lanes.append(_Lane(item))
                pool.submit(work, lanes[-1])
                if len(lanes) == ahead:
                    yield from drain()
            while lanes:
                yield from drain()
        finally:
            stop.set()

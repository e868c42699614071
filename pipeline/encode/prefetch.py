"""Items decoded ahead of their turn, by threads that each drive a decoding child."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from typing import Generic, TypeVar

from pipeline.encode.utilization import Activity

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

CLIPS_AHEAD = 2
"""Decoded clips that wait per video in flight."""


class _Lane(Generic[Asked, Answer]):
    """What comes of one item: first that its bytes are there, then its outcomes, then None or an error."""

    def __init__(self, item: Asked) -> None:
        self.item = item
        self.fetched = threading.Event()
        self.outcomes: Queue[Answer | BaseException | None] = Queue(CLIPS_AHEAD)


def decode_in_order(
    found: Iterator[Asked],
    decode: Callable[[Asked, Callable[[], None]], Iterator[Answer]],
    ahead: int,
    enter: Callable[[Activity], None] = lambda stage: None,
) -> Iterator[tuple[Asked, Answer]]:
    """Outcomes of every item in order, with ``ahead`` items being decoded at once and a few clips of each waiting.

    ``decode`` may call its second argument once it has, or will never have, the item's bytes. ``enter`` is told what the
    caller waits for: ``FETCH`` or ``DECODE``.
    """
    stop = threading.Event()
    lanes: deque[_Lane[Asked, Answer]] = deque()

    def put(lane: _Lane[Asked, Answer], value: Answer | BaseException | None) -> None:
        lane.fetched.set()
        while not stop.is_set():
            try:
                return lane.outcomes.put(value, timeout=0.2)
            except Full:
                continue

    def work(lane: _Lane[Asked, Answer]) -> None:
        try:
            for decoded in decode(lane.item, lane.fetched.set):
                put(lane, decoded)
                if stop.is_set():
                    return
            put(lane, None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(lane, error)

    def drain() -> Iterator[tuple[Asked, Answer]]:
        lane = lanes.popleft()
        lane.fetched.wait()
        while True:
            enter(Activity.DECODE)
            value = lane.outcomes.get()
            if isinstance(value, BaseException):
                raise value
            if value is None:
                return enter(Activity.FETCH)
            yield lane.item, value

    with ThreadPoolExecutor(ahead) as pool:
        enter(Activity.FETCH)
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

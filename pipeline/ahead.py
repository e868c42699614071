"""Items decoded or probed ahead of their turn, by threads that each drive a decoding child."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from typing import TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

CLIPS_AHEAD = 2
"""Decoded clips that wait per video in flight."""


def decode_in_order(
    found: Iterator[Asked], decode: Callable[[Asked], Iterator[Answer]], ahead: int
) -> Iterator[tuple[Asked, Answer]]:
    """Outcomes of every item in order, with ``ahead`` items being decoded at once and a few clips of each waiting."""
    stop = threading.Event()
    lanes: deque[tuple[Asked, Queue[Answer | BaseException | None]]] = deque()

    def put(lane: Queue[Answer | BaseException | None], value: Answer | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return lane.put(value, timeout=0.2)
            except Full:
                continue

    def work(item: Asked, lane: Queue[Answer | BaseException | None]) -> None:
        try:
            for decoded in decode(item):
                put(lane, decoded)
                if stop.is_set():
                    return
            put(lane, None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(lane, error)

    def drain() -> Iterator[tuple[Asked, Answer]]:
        item, lane = lanes.popleft()
        while (value := lane.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield item, value

    with ThreadPoolExecutor(ahead) as pool:
        try:
            for item in found:
                lane: Queue[Answer | BaseException | None] = Queue(CLIPS_AHEAD)
                lanes.append((item, lane))
                pool.submit(work, item, lane)
                if len(lanes) == ahead:
                    yield from drain()
            while lanes:
                yield from drain()
        finally:
            stop.set()

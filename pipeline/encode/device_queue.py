"""One call at a time on a device, and who goes first."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import PriorityQueue
from typing import Any, TypeVar

from pipeline.errors import LatentmillError

T = TypeVar("T")


class DeviceQueue:
    """A thread that makes calls one by one, those of the oldest unit first.

    Were they made in turn, two units in flight would end at the same time, and leave the device idle while both are
    committed and two new ones begin.
    """

    def __init__(self) -> None:
        self._calls: PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any] | None]] = PriorityQueue()
        self._numbers = itertools.count()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def submit(self, unit: int, call: Callable[[], T]) -> Future[T]:
        """Make ``call`` when the device is free and no call of a lower ``unit`` waits. LatentmillError when closed."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise LatentmillError("the encoder has been closed")
            self._calls.put((unit, next(self._numbers), future, call))
        return future

    def close(self) -> None:
        """End the thread after the call that it is in; calls that wait are cancelled."""
        with self._closing:
            self._closed = True
            self._calls.put((-1, next(self._numbers), Future(), None))
        self._thread.join()

    def _work(self) -> None:
        while True:
            _, _, future, call = self._calls.get()
            if call is None:
                break
            try:
                future.set_result(call())
            except BaseException as error:  # handed to the unit's thread, which raises it
                future.set_exception(error)
            del future, call  # or the pixels would stay until the next call
        while not self._calls.empty():
            self._calls.get()[2].cancel()


class Slots:
    """A number of places of which some work takes one and some takes all, in the order of asking."""

    def __init__(self, number: int) -> None:
        self._free = threading.Semaphore(number)
        self._next = threading.Lock()

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[None]:
        """So many places, given back afterwards."""
        with self._next:
            for _ in range(number):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(number)

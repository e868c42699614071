"""The order of calls on a device, and how many units an encoder works on at once."""

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
    """A thread that makes one call at a time, the oldest unit's first.

    If the units took turns, two units in flight would end at the same time, and the device would be idle while both are
    committed and two new ones begin.
    """

    def __init__(self) -> None:
        self._calls: PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any] | None]] = PriorityQueue()
        self._numbers = itertools.count()
        self._close_lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._make_calls, name="device", daemon=True)
        self._thread.start()

    def submit(self, unit: int, call: Callable[[], T]) -> Future[T]:
        """Make ``call`` when the device is free and no call of a lower ``unit`` waits.

        Raises LatentmillError after ``close``.
        """
        future: Future[T] = Future()
        with self._close_lock:
            if self._closed:
                raise LatentmillError("the encoder has been closed")
            self._calls.put((unit, next(self._numbers), future, call))
        return future

    def close(self) -> None:
        """End the thread after its current call, and cancel the calls that wait."""
        with self._close_lock:
            self._closed = True
            self._calls.put((-1, next(self._numbers), Future(), None))
        self._thread.join()

    def _make_calls(self) -> None:
        while True:
            _, _, future, call = self._calls.get()
            if call is None:
                break
            try:
                future.set_result(call())
            except BaseException as error:  # the future raises it in the unit's thread
                future.set_exception(error)
            del future, call  # frees the pixels now, not at the next call
        while not self._calls.empty():
            self._calls.get()[2].cancel()


class Slots:
    """A fixed number of slots. Requests are served in order, so that one for all slots is not passed over for ever."""

    def __init__(self, number: int) -> None:
        self._free = threading.Semaphore(number)
        self._request = threading.Lock()

    @contextlib.contextmanager
    def reserve(self, number: int) -> Iterator[None]:
        """Wait for ``number`` slots and hold them inside the ``with`` block."""
        with self._request:
            for _ in range(number):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(number)

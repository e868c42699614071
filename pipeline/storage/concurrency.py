"""Runs many small requests a few at a time, and work beside other work."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from functools import partial
from threading import Barrier, Thread
from typing import Any, TypeVar

from pipeline.storage.retry import abandoned_when

REQUESTS = 32
"""Number of requests at a time. A store that takes 30 ms for one then answers a thousand a second."""

LARGE_REQUESTS = 4
"""Number of requests at a time for files of some megabytes, such as parts of an index."""

A = TypeVar("A")
T = TypeVar("T")


def map_concurrently(call: Callable[[A], T], arguments: Iterable[A], at_once: int | None = None) -> Iterator[T]:
    """Yield the results of ``call`` in the order of the arguments. An error is raised when its result is due.

    Makes ``at_once`` calls at a time, by default ``REQUESTS``. Holds at most twice as many results, and takes arguments as
    it needs them.
    """
    at_once = at_once or REQUESTS
    pool = DaemonPool(at_once)
    ahead: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            ahead.append(pool.submit(partial(call, argument)))
            if len(ahead) > 2 * at_once:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.close()


MapTasks = Callable[[Callable[[Any], dict[str, Any]], Sequence[Any]], Iterable[dict[str, Any]]]
"""A function that yields ``work(item)`` for every item, in any order. ``work`` and the items can be pickled, the results
fit into JSON, and ``work`` may be called again for an item, so that the tasks can run on a cluster."""


def map_in_process(work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterable[dict[str, Any]]:
    """Run tasks one after the other in this process, in order. See ``MapTasks``."""
    return map(work, items)


def run_at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make all calls at the same time, each in a thread of its own; their results in order."""
    barrier = Barrier(len(calls))
    results: list[Future[T]] = [Future() for _ in calls]

    def start(call: Callable[[], T], result: Future[T]) -> None:
        barrier.wait()
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threads = [Thread(target=start, args=pair) for pair in zip(calls, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [result.result() for result in results]


@contextlib.contextmanager
def running_beside(work: Callable[[threading.Event], None], *, name: str, longest_s: float) -> Iterator[None]:
    """Run ``work`` in a thread during the ``with`` block, which sets the event at its end and waits for ``longest_s``."""
    done = threading.Event()
    thread = Thread(target=work, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(longest_s)


class DaemonPool:
    """Threads that a process does not wait for when it ends or closes the pool, unlike those of ``ThreadPoolExecutor``.

    For requests to stores that may not answer for minutes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._threads: list[threading.Thread] = []
        self.closed = threading.Event()
        """Set when nobody waits for the results any more."""

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Make a call in a thread."""
        future: Future[T] = Future()
        self._unfinished.add(future)
        self._tasks.put((future, call))
        if len(self._threads) < self._size:
            thread = threading.Thread(target=self._work, name="requests", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Cancel all calls without waiting for those that run. Whoever waits for a result gets CancelledError."""
        self.closed.set()
        for future in list(self._unfinished):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(CancelledError())
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not self.closed.is_set():
                self._run(future, call)
            self._unfinished.discard(future)

    def _run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        try:
            with abandoned_when(self.closed):
                result = call()
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)

"""Runs many small requests a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, Thread
from typing import TypeVar

from pipeline.storage.drivers.waits import WAITS

REQUESTS = 32
"""Number of requests at a time. A store that takes 30 ms for one then answers a thousand a second."""

A = TypeVar("A")
T = TypeVar("T")


def map_concurrently(call: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
    """Yield the results of ``call`` in the order of the arguments. An error is raised when its result is due.

    Holds at most ``2 * REQUESTS`` results, and takes arguments as it needs them.
    """
    pool = ThreadPoolExecutor(REQUESTS)
    ahead: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            ahead.append(pool.submit(call, argument))
            if len(ahead) > 2 * REQUESTS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except KeyboardInterrupt:
        with WAITS.given_up():  # a request may wait for minutes before it is made again
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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

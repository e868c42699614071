"""Many small requests: a few at once, their answers in order, and no more of them in memory than are at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

REQUESTS = 32
"""At once: against a store that takes 30 ms for one, a thousand a second."""

A = TypeVar("A")
T = TypeVar("T")


def in_parallel(call: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
    """What ``call`` gives for each argument, in their order; raises what it raises when it is that argument's turn."""
    pool = ThreadPoolExecutor(REQUESTS)
    ahead: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            ahead.append(pool.submit(call, argument))
            if len(ahead) > 2 * REQUESTS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

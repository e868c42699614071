"""Tries requests again that may succeed later: for a bounded time, with growing random pauses."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import tenacity

from pipeline.errors import ConfigError
from pipeline.storage.drivers.errors import ShortRead, is_transient, note_tries, retry_after_s
from pipeline.storage.drivers.waits import WAITS, note_pause, sleep_through_pause

VARIABLE = "LATENTMILL_PATIENCE_S"
"""Environment variable with the number of seconds for which an outage of a store is waited out."""
PATIENCE_S = 600.0
"""Its default: the time after which no further try begins, without the pauses that the server asked for."""
SHORT_PATIENCE_S = 45.0
"""The same for local disks and for the addresses in a manifest, of which some are always dead."""
LONGEST_PAUSE_S = 20.0
LONGEST_REQUESTED_PAUSE_S = 310.0
"""Longest pause that a server may ask for, and how much all of them add to the patience.

The Hugging Face Hub counts requests in windows of 5 minutes.
"""

MARGIN_S = 0.05
"""Time by which the last try comes after the end of the patience, so that no other follows."""

T = TypeVar("T")

_abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


class RangesIgnored(OSError):
    """A server sent more than the range of a file that a request named."""


def check_length(data: bytes, size_bytes: int) -> bytes:
    """The data. ShortRead if they are not as long as the file."""
    if len(data) != size_bytes:
        raise ShortRead(f"got {len(data)} of {size_bytes} bytes")
    return data


def check_range(data: bytes, length: int) -> bytes:
    """The data of a range. ShortRead if they are shorter, RangesIgnored if they are longer."""
    if len(data) > length:
        raise RangesIgnored(
            f"the server sent {len(data)} bytes for a range of {length}: it does not answer requests for ranges, so its "
            "files must be copied to a disk or another store before they are read"
        )
    return check_length(data, length)


def patience_s() -> float:
    """Seconds for which an outage is waited out. ConfigError if the variable is no such number."""
    text = os.environ.get(VARIABLE)
    if not text:
        return PATIENCE_S
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ConfigError(f"{VARIABLE} must be a number of seconds, got '{text}'")
    return value


@contextlib.contextmanager
def abandoned_when(event: threading.Event) -> Iterator[None]:
    """Let requests inside the ``with`` block wait for no further try once ``event`` is set."""
    token = _abandoned.set(event)
    try:
        yield
    finally:
        _abandoned.reset(token)


def retried(call: Callable[[], T], *, also: tuple[type[Exception], ...] = (), longest_s: float | None = None) -> T:
    """Call again while it fails with a transient error, for ``patience_s()`` in all. Raises the last error.

    A pause that the server asks for (``Retry-After``) is kept. ``also``: further errors to treat as transient.
    ``longest_s``: a shorter time. A failed call may have taken effect and lost its answer, so calling twice must be safe.
    """
    limit_s = patience_s() if longest_s is None else min(longest_s, patience_s())
    abandoned = _abandoned.get()
    requested_s = 0.0
    grow = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_S)

    def pause(state: tenacity.RetryCallState) -> float:
        nonlocal requested_s
        wanted = retry_after_s(_error(state))
        if wanted is None:
            left_s = limit_s - _waited_s(state, requested_s)
            return min(grow(state), max(left_s, 0.0) + MARGIN_S)  # one last try at the end
        wanted = min(wanted, LONGEST_REQUESTED_PAUSE_S)
        requested_s += wanted
        return wanted + grow(state) / 10  # not all clients at once

    def stop(state: tenacity.RetryCallState) -> bool:
        over = WAITS.is_given_up or (abandoned is not None and abandoned.is_set())
        if not over and _waited_s(state, requested_s) <= limit_s:
            return False
        note_tries(_error(state), state.attempt_number, state.seconds_since_start or 0.0)
        return True

    retrying = tenacity.Retrying(
        sleep=sleep_through_pause,
        stop=stop,
        wait=pause,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, also) or is_transient(error)),
        before_sleep=lambda state: note_pause(state, limit_s),
        reraise=True,
    )
    try:
        return retrying(call)
    except FileNotFoundError as error:
        # Often an expected answer. Frames of tenacity and fsspec in its traceback hold the error itself: such a cycle would
        # keep the variables of all callers, for example a whole dataset, until the next garbage collection.
        raise error.with_traceback(None) from error.__cause__


def _waited_s(state: tenacity.RetryCallState, requested_s: float) -> float:
    """Seconds since the first try, without the pauses that the server asked for, as far as they are not too long."""
    return max(state.seconds_since_start or 0.0, state.idle_for) - min(requested_s, LONGEST_REQUESTED_PAUSE_S)


def _error(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "only failed calls are tried again"
    return error

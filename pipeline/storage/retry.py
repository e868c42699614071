"""Tries requests again that may succeed later: a bounded number of times, with growing random pauses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tenacity

from pipeline.storage.drivers.errors import ShortRead, is_transient, retry_after_s
from pipeline.storage.drivers.waits import WAITS, note_pause

TRIES = 6
LONGEST_PAUSE_S = 20.0
PATIENCE_S = 45.0
"""Time after which no further try begins, without the pauses that the server asked for."""
LONGEST_REQUESTED_PAUSE_S = 310.0
"""Longest pause that a server may ask for. The Hugging Face Hub counts requests in windows of 5 minutes."""

T = TypeVar("T")


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


def retried(call: Callable[[], T], *, also: tuple[type[Exception], ...] = ()) -> T:
    """Call up to ``TRIES`` times while it fails with a transient error. Raises the last error.

    A pause that the server asks for (``Retry-After``) is kept. ``also``: further errors to treat as transient. A failed
    call may have taken effect and lost its answer, so calling twice must be safe.
    """
    requested_s = 0.0
    grow = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_S)

    def pause(state: tenacity.RetryCallState) -> float:
        nonlocal requested_s
        wanted = retry_after_s(_error(state))
        if wanted is None:
            return grow(state)
        wanted = min(wanted, LONGEST_REQUESTED_PAUSE_S)
        requested_s += wanted
        return wanted + grow(state) / 10  # not all clients at once

    def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= TRIES or (state.seconds_since_start or 0.0) - requested_s > PATIENCE_S

    return tenacity.Retrying(
        stop=stop,
        wait=pause,
        sleep=lambda seconds: WAITS.sleep(seconds),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, also) or is_transient(error)),
        before_sleep=lambda state: note_pause(state, TRIES - 1),
        reraise=True,
    )(call)


def _error(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "only failed calls are tried again"
    return error

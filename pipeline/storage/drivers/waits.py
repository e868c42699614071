"""Pauses between retries: what this process waits for now, and how long it has waited in all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import tenacity

from pipeline.storage.drivers.errors import error_code, http_status

SHORTEST_SHOWN_S = 3.0
"""Seconds of trouble from which on a wait is shown."""

_target: ContextVar[str] = ContextVar("target", default="a store")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """A pause before a request is made again."""

    target: str
    """URL of the file, without secrets."""
    problem: str
    """The failure in a few words."""
    retry: int
    """Number of the next retry, from 1."""
    started_s: float
    """Monotonic time of the first try."""
    ends_s: float
    """Monotonic time of the next try."""

    def text(self, now_s: float, retries: int) -> str:
        """One phrase for people."""
        waited_s = now_s - self.started_s
        return f"waiting {waited_s:.0f} s for {self.target} ({self.problem}), retry {self.retry} of {retries}"


class Waits:
    """The pauses of a process. Any number of threads may use it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._pauses: dict[int, tuple[Pause, int]] = {}
        self._total_s = 0.0
        self._given_up = threading.Event()

    @property
    def total_s(self) -> float:
        """Seconds of all pauses that have begun. Pauses of two threads at once add up."""
        with self._lock:
            return self._total_s

    def begin(self, pause: Pause, retries: int) -> None:
        """Note a pause of the calling thread; it ends by itself."""
        with self._lock:
            self._pauses[threading.get_ident()] = pause, retries
            self._total_s += pause.ends_s - self._now()

    def sleep(self, seconds: float) -> None:
        """Pause the calling thread, unless the work of this process is given up."""
        self._given_up.wait(seconds)

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """End the pauses of now, and have none inside the ``with`` block, where threads only have to end."""
        self._given_up.set()
        try:
            yield
        finally:
            self._given_up.clear()

    def texts(self) -> list[str]:
        """Phrases about the pauses of now, the longest trouble first. Short ones are left out."""
        now_s = self._now()
        with self._lock:
            self._pauses = {thread: entry for thread, entry in self._pauses.items() if entry[0].ends_s >= now_s}
            shown = [
                entry for entry in self._pauses.values() if entry[0].ends_s - entry[0].started_s >= SHORTEST_SHOWN_S
            ]
        return [pause.text(now_s, retries) for pause, retries in sorted(shown, key=lambda entry: entry[0].started_s)]


WAITS = Waits()
"""The pauses of this process."""


@contextlib.contextmanager
def requests_to(target: str) -> Iterator[None]:
    """Name the file that requests inside the ``with`` block are for. ``target`` has no secrets."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def note_pause(state: tenacity.RetryCallState, retries: int) -> None:
    """Note the pause that begins now: a hook for ``tenacity``."""
    error = state.outcome.exception() if state.outcome is not None else None
    now_s = time.monotonic()
    pause = Pause(
        target=_target.get(),
        problem=_problem(error),
        retry=state.attempt_number,
        started_s=now_s - (state.seconds_since_start or 0.0),
        ends_s=now_s + (state.next_action.sleep if state.next_action is not None else 0.0),
    )
    WAITS.begin(pause, retries)


def _problem(error: BaseException | None) -> str:
    """Status and code of the server's answer, or the type of the error."""
    if error is None:
        return ""
    status, code = http_status(error), error_code(error)
    parts = [f"HTTP {status}" if status else "", code if code and code != str(status) else ""]
    return " ".join(part for part in parts if part) or type(error).__name__

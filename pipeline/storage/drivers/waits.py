"""Pauses between retries: what this process waits for now, and how long it has waited in all."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import tenacity

from pipeline.storage.drivers.errors import error_code, http_status

SHORTEST_SHOWN_S = 3.0
"""Seconds of trouble from which on a wait is shown."""
WARN_EVERY_S = 30.0
"""Seconds between two warnings."""

_target: ContextVar[str] = ContextVar("target", default="a store")


class StoreWarning(UserWarning):
    """A store does not answer, and the request is made again later."""


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

    patience_s: float
    """Time for which the request is tried again."""

    def text(self, now_s: float) -> str:
        """One phrase for people."""
        waited_s = now_s - self.started_s
        return (
            f"waiting {waited_s:.0f} s for {self.target} ({self.problem}), retry {self.retry}; "
            f"gives up after {self.patience_s:.0f} s"
        )


class Waits:
    """The pauses of a process. Any number of threads may use it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._pauses: dict[int, Pause] = {}
        self._total_s = 0.0
        self._given_up = threading.Event()
        self._warned_s: float | None = None
        self.warns = False
        """True if pauses are shown as Python warnings, in processes that show no progress of their own."""

    @property
    def total_s(self) -> float:
        """Seconds of all pauses, with the rest of those of now. Pauses of two threads at once add up."""
        with self._lock:
            return self._total_s

    def begin(self, pause: Pause) -> None:
        """Note a pause of the calling thread, which ``end`` ends."""
        with self._lock:
            self._pauses[threading.get_ident()] = pause
            self._total_s += pause.ends_s - self._now()
            is_shown = self.warns and pause.ends_s - pause.started_s >= SHORTEST_SHOWN_S
            if not is_shown or (self._warned_s is not None and self._now() - self._warned_s < WARN_EVERY_S):
                return
            self._warned_s = self._now()
        warnings.warn(pause.text(self._now()), StoreWarning, stacklevel=2)

    def end(self) -> None:
        """End the calling thread's pause, if it has one. Time that it did not last is not counted."""
        with self._lock:
            pause = self._pauses.pop(threading.get_ident(), None)
            if pause is not None:
                self._total_s -= max(pause.ends_s - self._now(), 0.0)

    @property
    def is_given_up(self) -> bool:
        """True if no request is to be made again."""
        return self._given_up.is_set()

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
            pauses = [pause for pause in self._pauses.values() if pause.ends_s >= now_s]
        shown = [pause for pause in pauses if pause.ends_s - pause.started_s >= SHORTEST_SHOWN_S]
        return [pause.text(now_s) for pause in sorted(shown, key=lambda pause: pause.started_s)]


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


def note_pause(state: tenacity.RetryCallState, patience_s: float) -> None:
    """Note the pause that begins now: the hook of ``tenacity`` that it calls before ``sleep_through_pause``."""
    error = state.outcome.exception() if state.outcome is not None else None
    now_s = time.monotonic()
    pause = Pause(
        target=_target.get(),
        problem=_problem(error),
        retry=state.attempt_number,
        started_s=now_s - (state.seconds_since_start or 0.0),
        ends_s=now_s + (state.next_action.sleep if state.next_action is not None else 0.0),
        patience_s=patience_s,
    )
    WAITS.begin(pause)


def sleep_through_pause(seconds: float) -> None:
    """Sleep, then end the pause that ``note_pause`` began, also if the sleep is cut short."""
    try:
        WAITS.sleep(seconds)
    finally:
        WAITS.end()


def _problem(error: BaseException | None) -> str:
    """Status and code of the server's answer, or the type of the error."""
    if error is None:
        return ""
    status, code = http_status(error), error_code(error)
    parts = [f"HTTP {status}" if status else "", code if code and code != str(status) else ""]
    is_of_obstore = type(error).__module__.startswith("obstore")  # whose errors have one type
    return " ".join(part for part in parts if part) or ("no answer" if is_of_obstore else type(error).__name__)

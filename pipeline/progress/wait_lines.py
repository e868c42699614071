"""Lines about what the driver waits for, also while it plans and finishes, when there is no progress line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pipeline.storage.concurrency import running_beside
from pipeline.storage.drivers.waits import WAITS

CHECK_EVERY_S = 1.0
SAY_EVERY_S = 10.0
"""Seconds between two lines."""


@contextmanager
def report_waits(say: Callable[[str], None]) -> Iterator[None]:
    """Inside the ``with`` block, say what this process waits for before it tries a request again."""
    with running_beside(partial(_report, say), name="waits", longest_s=CHECK_EVERY_S):
        yield


def _report(say: Callable[[str], None], done: threading.Event) -> None:
    pause_s = CHECK_EVERY_S
    while not done.wait(pause_s):
        texts = WAITS.texts()
        if texts:
            say(texts[0] + (f", and {len(texts) - 1} more requests" if len(texts) > 1 else ""))
        pause_s = SAY_EVERY_S if texts else CHECK_EVERY_S

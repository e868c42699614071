"""The frame of the programs that run encoders: errors, interrupts and exit codes, and the end of a job."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

from pipeline.errors import USER_ERRORS, exit_code
from pipeline.executor.ray_cluster import disconnect_from_ray
from pipeline.progress.terminal import Terminal
from pipeline.progress.wait_lines import report_waits
from pipeline.visible import make_foreign_text_visible

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

S_co = TypeVar("S_co", covariant=True)
S = TypeVar("S")


class JobFunction(Protocol[S_co]):
    """A job that prints lines with ``say`` and, on a terminal, replaces its progress line with ``show``."""

    def __call__(self, *, say: Callable[[str], None], show: Callable[[str], None] | None) -> S_co:
        """Run the job and return its summary."""


def run_program(command: Callable[[Terminal], int]) -> int:
    """Run a command and return its exit code. Errors of users become one line, and an interrupt says how to go on."""
    terminal = Terminal(sys.stdout)
    try:
        return command(terminal)
    except USER_ERRORS as error:
        disconnect_from_ray()
        terminal.say_error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        terminal.say("interrupted; run the same command again to go on")
        return INTERRUPTED


def run_job(job: JobFunction[S], terminal: Terminal) -> S:
    """Run a job with lines about what it waits for, leave Ray, and return the job's summary."""
    try:
        with report_waits(terminal.say):
            summary = job(say=terminal.say, show=terminal.show if terminal.rewrites else None)
    except SystemExit:  # Ray's reaction to SIGTERM while it is connected
        raise KeyboardInterrupt from None
    disconnect_from_ray()
    return summary


def start(main: Callable[[], int]) -> NoReturn:
    """Run a program's ``main`` as this process, which ends with its exit code."""
    make_foreign_text_visible()
    signal.signal(signal.SIGTERM, _interrupt)  # the signal with which `ray job stop` and schedulers end a job
    code = main()
    if code == INTERRUPTED:  # without waiting for threads that a store keeps
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt

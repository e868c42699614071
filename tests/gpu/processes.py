"""Processes of their own for parts of sections, and for what a part must not do to itself.

They are forked from a process that has imported torch, which saves the imports, but has not computed with it: neither
torch's threads nor CUDA survive a fork. Where an import has already started CUDA, each is a new interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.gpu.report import Report, Row, Verdict

DONE = "done"
"""Message after the last row."""
END_S = 5.0
"""Seconds that a process may take to end after its last row."""


@dataclass(frozen=True)
class Ended:
    """How a process of ``call_in_new_process`` ended."""

    value: Any
    """What the function returned; None if it did not return."""
    exit_code: int | None
    """Negative for a signal; None if it ran out of time."""
    error: str
    """Type and message of the error that the function raised; empty without one."""


def run_part(module: str, arguments: tuple[Any, ...], section: str, device: str, budget_s: float) -> Iterator[Row]:
    """Call ``run(report, *arguments)`` of a module in a process of its own, and yield its rows as they come.

    When the budget is spent, the process is killed with all that it has started, and the last row says ``cut short``.
    """
    context = _context(device)
    receiver, sender = context.Pipe(duplex=False)
    ends_s = time.monotonic() + budget_s
    process = context.Process(target=_work, args=(module, arguments, section, device, ends_s, sender))
    process.start()
    sender.close()
    what = " ".join(map(str, arguments)) or "the section"
    try:
        while True:
            wait([receiver, process.sentinel], timeout=max(0.0, ends_s - time.monotonic()))
            try:
                row = receiver.recv() if receiver.poll() else None
            except EOFError:
                process.join(END_S)
                row = None
            if row == DONE:
                break
            if row is not None:
                yield row
            elif not process.is_alive():
                yield Row(section, what, f"its process ended with {_exit_words(process.exitcode)}", Verdict.FAILED)
                break
            elif time.monotonic() >= ends_s:
                yield Row(section, what, f"not done after {budget_s:.0f} s", Verdict.CUT_SHORT)
                break
        if time.monotonic() < ends_s:
            process.join(END_S)
    finally:
        _kill(process)


def call_in_new_process(device: str, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> Ended:
    """Call a function of a module in a new process and wait for it.

    The caller must not have computed with torch.
    """
    context = _context(device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, arguments, sender))
    process.start()
    sender.close()
    value, error, received = None, "", False
    ends_s = time.monotonic() + timeout_s
    with contextlib.suppress(EOFError):
        if receiver.poll(timeout_s):
            value, error = receiver.recv()
            received = True
    process.join(max(0.0, ends_s - time.monotonic()) if not received else END_S)
    exit_code = process.exitcode
    if process.is_alive():
        process.kill()
        process.join()
    return Ended(value, exit_code, error)


@functools.cache
def _context(device: str) -> Any:
    """The way to start processes that can use the device."""
    fork = multiprocessing.get_context("fork")
    if device == "cpu" or "torch" not in sys.modules:
        return fork
    process = fork.Process(target=_exit_with_bad_fork)
    process.start()
    process.join()
    return multiprocessing.get_context("spawn") if process.exitcode else fork


def _exit_with_bad_fork() -> None:
    """End this process with exit code 1 if it cannot use CUDA because it was forked."""
    sys.exit(int(sys.modules["torch"].cuda._is_in_bad_fork()))


def _work(
    module: str, arguments: tuple[Any, ...], section: str, device: str, ends_s: float, sender: Connection
) -> None:
    os.setsid()  # so that everything that the part starts can be ended with it
    try:
        importlib.import_module(module).run(Report(section, device, ends_s, sender.send), *arguments)
    except Exception as error:
        traceback.print_exc()
        what = " ".join(map(str, arguments)) or "the section"
        sender.send(Row(section, what, _describe(error), Verdict.FAILED))
    sender.send(DONE)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], sender: Connection) -> None:
    try:
        result = function(*arguments), ""
    except Exception as error:
        result = None, _describe(error)
    sender.send(result)


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _exit_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()

"""Finds and ends the processes that tests have started, with their children."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Process ids of all children of a process, their children, and so on; includes ``pid``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def marked(name: str, value: object) -> dict[int, str]:
    """Command lines, by process id, of the processes whose environment has this variable with this value."""
    found = {}
    mark = f"{name}={value}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            if mark in environment.split(b"\0"):
                found[int(entry.name)] = command.decode().replace("\0", " ").strip()
    return found


def end(pids: Iterable[int]) -> None:
    """Kill processes at once. Agents of a dead Ray node would search for it for minutes, on half a processor each."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

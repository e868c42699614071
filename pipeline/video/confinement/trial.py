"""A confined child attacks its own machine before any child gets a video: this shows what the kernel really refuses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.video.confinement.child import Policy, confine
from pipeline.video.confinement.confinement import ATTACKS, Confinement


def try_confinement(policy: Policy, encoder: int) -> Confinement:
    """Fork a child that confines itself and tries every attack.

    If another user cannot read the program, ``policy`` keeps the user from now on.
    """
    result = _attack_in_child(policy, encoder)
    if unreadable := result.pop("unreadable"):
        policy.changes_user = False
        policy.refused["user"] = f"it cannot read {unreadable}"
        result = _attack_in_child(policy, encoder)
        result.pop("unreadable")
    return Confinement.from_json(result)


def _attack_in_child(policy: Policy, encoder: int) -> dict[str, Any]:
    """Fields of ``Confinement``, and in ``unreadable`` the first path of the program that the child could not read."""
    server = os.getpid()
    with _canary() as canary:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _attack(policy, encoder, server, canary, write_end)
            os._exit(0)
        os.close(write_end)
        with open(read_end, encoding="utf-8") as pipe:
            lines = pipe.readlines()
        os.waitpid(pid, 0)
    result: dict[str, Any] = {"taken": {}, "refused": {}, "possible": list(ATTACKS), "unreadable": ""}
    for line in lines:  # the last one counts
        result |= json.loads(line)
    return result


@contextlib.contextmanager
def _canary() -> Iterator[str]:
    """Path of a file that only this user may read; an empty path where there is no folder for it."""
    try:
        file = tempfile.NamedTemporaryFile()
    except OSError:
        yield ""
        return
    with file:
        yield file.name
    Path(f"{file.name}.new").unlink(missing_ok=True)


def _attack(policy: Policy, encoder: int, server: int, canary: str, pipe: int) -> None:
    """Confine this process and try every attack. Writes results as lines of JSON."""
    measures, _ = confine(policy, server, None, keep=(pipe,))
    attacks: dict[str, Callable[[], None]] = {
        "files": lambda: _read(canary),
        "writes": lambda: _write(canary),
        "encoder": lambda: _read_process(encoder),
        "processes": lambda: _read_process(server),
        "signals": lambda: _any_of(lambda: os.kill(encoder, 0), lambda: os.kill(server, 0)),
        "network": _reach_network,
        "sockets": lambda: socket.socket(socket.AF_UNIX).close(),
        "programs": _fork,
    }
    possible = [name for name, attack in attacks.items() if not _is_refused(attack)]
    result = {"taken": measures.taken, "refused": measures.refused, "unreadable": _first_unreadable(policy.paths)}
    for names in ([*possible, "programs"], possible):  # the second line is missing if a program starts
        os.write(pipe, json.dumps(result | {"possible": list(dict.fromkeys(names))}).encode() + b"\n")
        if not _is_refused(lambda: os.execv(sys.executable, [sys.executable, "-c", ""])):
            return


def _is_refused(attack: Callable[[], None]) -> bool:
    try:
        attack()
    except OSError:
        return True
    return False


def _any_of(*attacks: Callable[[], None]) -> None:
    """Succeed if one of the attacks does."""
    refused = [_is_refused(attack) for attack in attacks]
    if all(refused):
        raise PermissionError


def _read(path: str) -> None:
    if path:
        os.close(os.open(path, os.O_RDONLY))


def _write(canary: str) -> None:
    """Write to the canary, create a file beside it, or change its rights."""
    if canary:
        _any_of(
            lambda: os.close(os.open(canary, os.O_WRONLY)),
            lambda: os.close(os.open(f"{canary}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
            lambda: os.chmod(canary, 0o600),
        )


def _read_process(pid: int) -> None:
    _any_of(lambda: _read(f"/proc/{pid}/environ"), lambda: _read(f"/proc/{pid}/mem"))


def _reach_network() -> None:
    """Make a socket where there are devices besides loopback."""
    socket.socket(socket.AF_INET).close()
    if [name for _, name in socket.if_nameindex()] == ["lo"]:
        raise PermissionError


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _first_unreadable(paths: list[str]) -> str:
    """The first path of the program that this process cannot open; empty if there is none."""
    files = [getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if "." not in name]
    for path in (*paths, *filter(None, files)):
        try:
            _read(path)
        except OSError:
            return path
    return ""

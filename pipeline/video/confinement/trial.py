"""A confined child attacks its own machine before any child gets a video: this shows what the kernel really refuses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.video.confinement.child import Policy, confine
from pipeline.video.confinement.confinement import ATTACKS, Confinement

OPEN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (a child must not be able to write there)
"""Folders to which every user may write."""


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
    with _secret() as secret:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _attack(policy, encoder, server, secret, write_end)
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
def _secret() -> Iterator[str]:
    """Path of a file that only this user may read. Where there is no place for one, nothing exists there."""
    try:
        fd, path = tempfile.mkstemp()
    except OSError:
        yield ""
        return
    os.close(fd)
    try:
        yield path
    finally:
        os.unlink(path)


def _attack(policy: Policy, encoder: int, server: int, secret: str, pipe: int) -> None:
    """Confine this process and try every attack. Writes results as lines of JSON."""
    measures, _ = confine(policy, server, None, keep=(pipe,))
    attacks: dict[str, Callable[[], None]] = {
        "secrets": lambda: _read(secret),
        "files": lambda: _any_of(lambda: _read("/"), lambda: _read("/etc/passwd")),
        "writes": lambda: _write(secret),
        "encoder": lambda: _read_process(encoder),
        "processes": lambda: _read_process(server),
        "signals": lambda: _any_of(lambda: os.kill(encoder, 0), lambda: os.kill(server, 0)),
        "network": _reach_network,
        "sockets": lambda: socket.socket(socket.AF_UNIX).close(),
        "programs": _fork,
    }
    untried = () if secret else ("secrets", "writes")  # what cannot be tried counts as possible
    possible = [name for name, attack in attacks.items() if name in untried or not _is_refused(attack)]
    result = {"taken": measures.taken, "refused": measures.refused, "unreadable": _first_unreadable(policy.paths)}
    for names in ([*possible, "programs"], possible):  # the second line is missing if a program starts
        os.write(pipe, json.dumps(result | {"possible": list(dict.fromkeys(names))}).encode() + b"\n")
        if not _is_refused(lambda: os.execv(sys.executable, [sys.executable, "-c", ""])):  # noqa: S606
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
    os.close(os.open(path, os.O_RDONLY))


def _write(secret: str) -> None:
    """Write to a file, change its rights, or create one in a folder that is open to every user."""
    name = f"latentmill-{os.getpid()}"
    new = [os.path.join(folder, name) for folder in (os.path.dirname(secret), *OPEN_FOLDERS)]
    _any_of(
        lambda: os.close(os.open(secret, os.O_WRONLY)),
        lambda: os.chmod(secret, 0o600),
        *(partial(_create, path) for path in new),
    )


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


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
    for path in [*paths, *(str(file) for file in files if file)]:
        try:
            _read(path)
        except OSError:
            return path
    return ""

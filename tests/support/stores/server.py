"""A store server on this machine: how its program is found, started, waited for and ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.support.client_settings import client_settings

START_S = 60.0
"""Longest time that a server may take to answer its first request."""


class NotFound(Exception):
    """A server's program is not on this machine. The message says how to install it."""


@dataclass(frozen=True, kw_only=True)
class StoreServer:
    """A running server with an empty bucket."""

    name: str
    """The name of the store in ``jobs/guides/stores.md``."""
    version: str
    url: str
    """URL of the bucket or container, such as ``s3://bucket``."""
    endpoint: str
    """The server's address, such as ``http://127.0.0.1:8333``."""
    log: Path
    """File with everything that the server has printed."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that point every client at the server, with its credentials."""
    pids: Sequence[int] = ()
    """Process ids of the server's programs."""

    @contextmanager
    def in_environment(self) -> Iterator[StoreServer]:
        """Set the server's variables in this process, and restore the old ones at the end."""
        with client_settings(self.settings):
            yield self


def program(name: str, variable: str, install: str) -> str:
    """The path of a server's program: from an environment variable, beside this Python, or on ``PATH``.

    NotFound says how to install it.
    """
    beside = Path(sys.executable).parent / name
    found = os.environ.get(variable) or (str(beside) if beside.exists() else shutil.which(name))
    if found is None:
        raise NotFound(f"{name} is not installed: {install}, or name its path in {variable}")
    return found


def require(module: str, install: str) -> None:
    """Raise NotFound unless a Python module can be imported."""
    if importlib.util.find_spec(module) is None:
        raise NotFound(f"{module} is not installed: {install}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing uses at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running(
    command: Sequence[str], log: Path, is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a program until the end of the context. Yields its process id when it is ready.

    RuntimeError, with the end of its output, if it ends early or does not become ready in ``START_S`` seconds.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=os.environ | dict(environment or {}),
        )
    try:
        deadline = time.monotonic() + START_S
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str, expected: Callable[[int], bool] = lambda status: status < 500) -> bool:
    """Whether a GET of the URL gets a status that is ``expected``."""
    try:
        with urlopen(Request(url), timeout=2) as response:  # noqa: S310
            return expected(response.status)
    except HTTPError as error:
        return expected(error.code)
    except (URLError, OSError, ValueError):
        return False


def listens(port: int) -> bool:
    """Whether something accepts connections at a port of the loopback address."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def version_from(command: Sequence[str], number: int = 0) -> str:
    """The first word with a dot that a program prints; ``number`` skips earlier ones."""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, timeout=60)
    words = [
        word.strip("v,")
        for word in (done.stdout + done.stderr).split()
        if "." in word and word.strip("v,")[0].isdigit()
    ]
    return words[number] if len(words) > number else "unknown"

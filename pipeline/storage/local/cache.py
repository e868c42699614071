"""Files and folders on local disk that one process of a node makes and all of them use.

An entry appears under its name by one rename. It is therefore whole or absent, even if the process that makes it is killed.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

POLL_S = 0.002
"""Pause between two attempts to take a lock."""


@contextmanager
def lock_beside(path: Path) -> Iterator[None]:
    """Lock ``path`` for all threads and processes of the node. Its file is ``<path>.lock``, which stays."""
    with FileLock(f"{path}.lock").acquire(poll_interval=POLL_S):
        yield


def make_once(path: Path, make: Callable[[Path], object]) -> None:
    """Make the file or folder ``path`` if it does not exist. Other processes that want it wait until it does.

    make: writes the file or folder under the temporary name that it gets.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_beside(path):
        if not path.exists():
            write_whole(path, make)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder under a temporary name, then rename it to ``path``. A file that is there is replaced.

    If ``write`` fails, what it wrote is removed.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)

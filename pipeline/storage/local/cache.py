"""Files and folders on local disk that one process of a node makes and all of them use.

An entry appears under its name by one rename. It is therefore whole or absent, even if the process that makes it is killed.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.storage.local.files import is_left_by_dead_writer, scratch_name

POLL_S = 0.002
"""Pause between two attempts to take a lock."""
OLDEST_PARTIAL_S = 24 * 3600.0
"""Age from which on an unfinished entry is removed, whoever has written it."""
PARTIAL = re.compile(r"(?P<writer>.+-\d+-[0-9a-f]{8})\..+\.partial")
"""Name of an unfinished entry: its writer, then the name of the entry."""


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
            sweep(path.parent)
            write_whole(path, make)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder under a temporary name, then rename it to ``path``. A file that is there is replaced.

    If ``write`` fails, what it wrote is removed.
    """
    partial = path.with_name(f"{scratch_name(secrets.token_hex(4))}.{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        _remove(partial)


def sweep(folder: Path) -> None:
    """Remove the unfinished entries of processes that were killed. Other files stay, and so does what may not be removed."""
    for partial in folder.glob("*.partial"):
        name = PARTIAL.fullmatch(partial.name)
        with contextlib.suppress(OSError):
            is_old = time.time() - partial.stat().st_mtime > OLDEST_PARTIAL_S
            if is_old or (name is not None and is_left_by_dead_writer(name["writer"])):
                _remove(partial)


def warn_of_cache(folder: Path, error: Exception, instead: str) -> None:
    """Warn that a cache cannot be used, and say what this process does instead."""
    problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    warnings.warn(
        f"the cache {folder} cannot be used ({problem}); {instead}. Make room there, or give each user a cache of their own",
        stacklevel=3,
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""Temporary files that hold what worker processes map, and which end with the process that wrote them."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.storage.local.files import is_left_by_dead_writer, scratch_name

PREFIX = "latentmill-"
"""Start of the names of temporary folders."""


def write_for_workers(owner: object, write: Callable[[Path], None], url: str) -> Path | None:
    """Return a new folder that ``write`` has filled; None, with a warning, if it cannot be written.

    The folder is removed with ``owner``, or when this process ends. url: the output, for the warning.
    """
    try:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{scratch_name('')}"))
        weakref.finalize(owner, _remove, folder, os.getpid())
        write(folder)
    except OSError as error:
        warnings.warn(
            f"worker processes will read the index of {url} once more each, because its copy cannot be written to "
            f"{tempfile.gettempdir()} ({error.strerror or error}); make room, or set TMPDIR",
            stacklevel=3,
        )
        return None
    return folder


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array that ``numpy.save`` has written."""
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r").view(np.ndarray)
    return mapped


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if is_left_by_dead_writer(folder.name.removeprefix(PREFIX)):
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in forked processes, where this runs too
        shutil.rmtree(folder, ignore_errors=True)

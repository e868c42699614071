"""Opens local files and reads them at offsets, on systems with and without ``pread`` and ``preadv``."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

READ_ONLY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags that open a file for reading. Windows alone has ``O_BINARY``, and lacks ``O_CLOEXEC``."""
_seek_lock = threading.Lock()
"""Lock of the position of every file, for systems that can only read at a file's position."""


def open_to_read(path: str) -> int:
    """Open a file for reading; its descriptor. The caller closes it."""
    return os.open(path, READ_ONLY)


def read_into(fd: int, into: memoryview, offset: int) -> int:
    """Read bytes at an offset into memory; their number, which is smaller than the memory if the file ends."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [into], offset)
    data = _read_at(fd, len(into), offset)
    into[: len(data)] = data
    return len(data)


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the bytes at each (offset, length) of a file; fewer if the file ends before."""
    fd = open_to_read(path)
    try:
        return [_read_at(fd, length, offset) for offset, length in ranges]
    finally:
        os.close(fd)


def _read_at(fd: int, length: int, offset: int) -> bytes:
    """Read bytes at an offset; fewer if the file ends before."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)

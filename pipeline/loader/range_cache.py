"""Ranges of remote shards kept on local disk, up to a size. What is in stays: epochs visit everything equally often."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from pathlib import Path


class RangeCache:
    """A folder that processes of a node may share. It deletes nothing but its own unfinished files.

    Shards are named by their content, so an entry never goes stale. A full disk makes it stop taking more.
    """

    def __init__(self, folder: Path, url: str, max_bytes: int) -> None:
        self._folder = folder
        self._url = url
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, shard: str, offset: int, into: memoryview) -> bool:
        """Fill ``into`` if the range is here."""
        try:
            with self._path(shard, offset, len(into)).open("rb", buffering=0) as file:
                return file.readinto(into) == len(into)
        except FileNotFoundError:
            return False

    def write(self, shard: str, offset: int, content: memoryview) -> None:
        """Keep a range if it fits in the bound."""
        path = self._path(shard, offset, len(content))
        if path.exists() or not self._reserve(len(content)):
            return
        partial = path.with_suffix(f".{secrets.token_hex(4)}")
        try:
            partial.write_bytes(content)
            partial.replace(path)  # whole, or not at all
        except OSError:  # a full disk: reading goes on without
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _reserve(self, nbytes: int) -> bool:
        """Count bytes before they are written, for all processes together."""
        fd = os.open(self._folder / "used_bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            used = int(os.pread(fd, 32, 0) or b"0") + nbytes
            if used > self._max_bytes:
                return False
            os.pwrite(fd, b"%032d" % used, 0)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def _path(self, shard: str, offset: int, nbytes: int) -> Path:
        name = hashlib.sha256(f"{self._url}/{shard}:{offset}+{nbytes}".encode()).hexdigest()[:32]
        return self._folder / name

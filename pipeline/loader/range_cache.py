"""Ranges of remote shards kept on local disk, up to a total size.

Nothing is evicted: every epoch reads every sample once, so no range is worth more than another.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from pipeline.storage.local.cache import lock_beside, sweep, warn_of_cache, write_whole


class RangeCache:
    """A folder of ranges that the processes of a node may share.

    It deletes nothing but its own unfinished files. Shards are named by their content, so a range never becomes stale.
    When the disk is full or may not be written, no further ranges are kept and reading continues.
    """

    def __init__(self, folder: Path, url: str, max_bytes: int) -> None:
        self._folder = folder
        self._url = url
        self._max_bytes = max_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)
        except OSError as error:
            warn_of_cache(folder, error, "this process reads all latents from the store")

    def read(self, shard: str, offset: int, into: memoryview) -> bool:
        """Fill ``into`` if the range is in the cache; return whether it was."""
        try:
            with self._path(shard, offset, len(into)).open("rb", buffering=0) as file:
                return file.readinto(into) == len(into)
        except OSError:  # there is none, or it is another user's
            return False

    def write(self, shard: str, offset: int, content: memoryview) -> None:
        """Keep a range if the cache has room for it."""
        path = self._path(shard, offset, len(content))
        with contextlib.suppress(OSError):  # a full disk, or another user's
            if not path.exists() and self._reserve(len(content)):
                write_whole(path, lambda partial: partial.write_bytes(content))

    def _reserve(self, num_bytes: int) -> bool:
        """Add to the number of bytes that all processes have written, unless it would exceed the maximum."""
        counter = self._folder / "used_bytes"
        counter.touch()
        with lock_beside(counter), counter.open("r+b", buffering=0) as file:
            used = int(file.read() or b"0") + num_bytes
            if used > self._max_bytes:
                return False
            file.seek(0)
            file.write(b"%032d" % used)  # one write of a fixed length, so that a kill cannot leave half a number
            return True

    def _path(self, shard: str, offset: int, num_bytes: int) -> Path:
        name = hashlib.sha256(f"{self._url}/{shard}:{offset}+{num_bytes}".encode()).hexdigest()[:32]
        return self._folder / name

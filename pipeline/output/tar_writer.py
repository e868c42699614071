"""Writes tar archives whose bytes depend on the names and contents of their members only."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.sources.tar.members import BLOCK_BYTES


def member_bytes(content_bytes: int) -> int:
    """Bytes that a member of the given size takes in an archive of ``TarWriter``: a header, and content in blocks."""
    return BLOCK_BYTES + -(-content_bytes // BLOCK_BYTES) * BLOCK_BYTES


def archive_bytes(members_bytes: int) -> int:
    """Size of an archive of ``TarWriter`` whose members take the given bytes. Two empty blocks end it, in whole records."""
    return -(-(members_bytes + 2 * BLOCK_BYTES) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class TarWriter:
    """Writes a USTAR archive without times, owners or host names."""

    def __init__(self, path: Path) -> None:
        self._file = _HashingFile(path)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        self._offset = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member and return the offset of its content in the archive."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        start = self._offset + BLOCK_BYTES
        self._offset += member_bytes(len(content))
        return start

    def close(self) -> tuple[str, int]:
        """Finish the archive and return its sha256 and its size in bytes."""
        self._tar.close()
        self._file.close()
        return self._file.sha256.hexdigest(), self._file.size_bytes

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self._raw.write(data)

    def tell(self) -> int:
        return self.size_bytes

    def close(self) -> None:
        self._raw.close()

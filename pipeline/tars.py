"""Tar archives: read strictly, written as a pure function of their members."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

BLOCK_BYTES = tarfile.BLOCKSIZE


class DamagedTar(tarfile.TarError):
    """The archive ends early or has a bad header. Python's tarfile takes both for its regular end."""


class _StrictTarInfo(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two zero blocks: the regular end
        except tarfile.HeaderError as error:
            raise DamagedTar(f"bad or missing header at byte {tar.offset}: {error}") from error


def members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every member of an uncompressed tar in order, with a reader of its content (None if it is no regular file).

    Reads ``file`` once from front to back. Raises tarfile.TarError (also out of the readers) where the archive is cut
    or a header does not check.
    """
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo) as tar:
        while (info := tar.next()) is not None:
            yield info, tar.extractfile(info) if info.isreg() else None
            tar.members.clear()  # type: ignore[attr-defined]  # else every member's header stays in memory


class TarWriter:
    """Writes a USTAR archive whose bytes depend on names and contents only: no times, owners or host in it."""

    def __init__(self, path: Path) -> None:
        self._file = _HashingFile(path)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        self._offset = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member; the offset of its content in the archive."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        start = self._offset + BLOCK_BYTES
        self._offset = start + -(-len(content) // BLOCK_BYTES) * BLOCK_BYTES
        return start

    def close(self) -> tuple[str, int]:
        """Finish the archive: its sha256 and size in bytes."""
        self._tar.close()
        self._file.close()
        return self._file.sha256.hexdigest(), self._file.size_bytes

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class _HashingFile:
    """A file being written, hashed on the way."""

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

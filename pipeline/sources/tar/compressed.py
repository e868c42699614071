"""Reads a compressed tar (gzip, bzip2, xz, zstd) as the plain tar that it holds.

The content is decompressed once, from front to back, into a nameless local file, and only as far as it is read. It can
therefore be read again at any offset. The file takes as much room in the folder for temporary files as the tar that was
read so far.
"""

from __future__ import annotations

import bz2
import io
import lzma
import tempfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.sources.retrying_file import open_retrying
from pipeline.sources.tar.members import BLOCK_BYTES, DamagedTar, is_header
from pipeline.storage.local.files import NO_SPACE, describe_full_disk

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a compressed file, and the name of its compression."""
MAX_RATIO = 100
"""Largest size of a tar relative to its compressed file. Videos hardly compress; gzip reaches 1000 with zeros."""
FREE_BYTES = 1 << 30
"""Size up to which ``MAX_RATIO`` does not matter."""
MAX_MEMORY_BYTES = 256 << 20
"""Largest dictionary that an xz file may ask for."""
READ_BYTES = 1 << 20
CHUNK_BYTES = 64 << 10
"""Decompressed bytes at a time. Of a stream with a wrong checksum the last chunk is lost."""


class Decompressor(Protocol):
    """The interface that the decompressors of ``bz2`` and ``lzma`` have in common."""

    @property
    def eof(self) -> bool:
        """Return whether the end of the compressed stream was reached."""

    @property
    def needs_input(self) -> bool:
        """Return whether more compressed data is needed."""

    @property
    def unused_data(self) -> bytes:
        """Return the data after the end of the compressed stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return up to ``max_length`` decompressed bytes."""


class _Gzip:
    """A ``Decompressor`` for a member of a gzip file. It checks the checksum and the size at the member's end."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


NEW_DECOMPRESSOR: dict[str, Callable[[], Decompressor]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY_BYTES),
}


class TarFile:
    """A tar at a URL, whatever its compression. Use it as a context: it holds connections and a local copy."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url = url
        self._size_bytes = size_bytes
        self._packed: IO[bytes] | None = None
        self._copy: _GrowingCopy | None = None

    def __enter__(self) -> TarFile:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._copy is not None:
            self._copy.close()
        if self._packed is not None:
            self._packed.close()

    def open(self, block_bytes: int | None = None) -> IO[bytes]:
        """Open the plain tar for reading and seeking. Reads raise DamagedTar where it cannot be decompressed.

        block_bytes: bytes that one request asks for, where the tar is not compressed.
        """
        if self._copy is not None:
            return io.BufferedReader(_View(self._copy), READ_BYTES)
        file = open_retrying(self._url, self._size_bytes, block_bytes)
        compression = compression_of(file)
        if compression is None:
            return file
        self._packed, self._copy = file, _GrowingCopy(file, compression)
        return self.open()

    def packed_offset(self, offset: int) -> int:
        """About the offset in the file at the URL that belongs to an offset in the plain tar."""
        return offset if self._copy is None else self._copy.packed_offset(offset)


def compression_of(file: IO[bytes]) -> str | None:
    """The compression of a file, from its first bytes; None for a plain tar. The position stays at the beginning."""
    beginning = file.read(BLOCK_BYTES)
    file.seek(0)
    if is_header(beginning):
        return None
    return next((name for magic, name in MAGIC.items() if beginning.startswith(magic)), None)


class _GrowingCopy:
    """The decompressed content, which grows as it is read.

    Shapes: ``_ends[i]`` and ``_packed_ends[i]`` are offsets in the tar and in the compressed file.
    Invariant: both grow; the first ``_packed_ends[i]`` compressed bytes give at least the first ``_ends[i]`` bytes.
    Example: chunks of 64 kB, from compressed reads of 80 kB that give twice as much: ends 64, 128, 160; packed ends 80.
    """

    def __init__(self, packed: IO[bytes], compression: str) -> None:
        self._packed = packed
        self._name = compression
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, because ``close`` closes it
        self._chunks = self._decompress()
        self._damage: DamagedTar | None = None
        self._size_bytes = 0
        self._ends = array("q")
        self._packed_ends = array("q")

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes; none at the end. DamagedTar if the data ends or is damaged before ``offset``."""
        while self._size_bytes <= offset:
            if self._damage is not None:
                raise self._damage
            if not self._grow():
                return b""
        self._file.seek(offset)
        return self._file.read(size_bytes)

    def packed_offset(self, offset: int) -> int:
        """The end of the compressed bytes that give the bytes before ``offset``."""
        index = bisect_left(self._ends, offset)
        return self._packed_ends[index] if index < len(self._ends) else self._packed.tell()

    def close(self) -> None:
        """Remove the copy."""
        self._file.close()

    def _grow(self) -> bool:
        """Decompress one more chunk. Return False at the end."""
        try:
            chunk = next(self._chunks, b"")
        except DamagedTar as error:
            self._damage = error
            return True
        if not chunk:
            return False
        self._file.seek(self._size_bytes)
        try:
            self._file.write(chunk)
            self._file.flush()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            folder = Path(tempfile.gettempdir())
            raise StoreError(
                f"no room in {folder} for the content of a compressed tar: {describe_full_disk(error, folder)}"
            ) from None
        self._size_bytes += len(chunk)
        self._ends.append(self._size_bytes)
        self._packed_ends.append(self._packed.tell())
        self._check_ratio()
        return True

    def _check_ratio(self) -> None:
        limit = max(FREE_BYTES, MAX_RATIO * self._packed.tell())
        if self._size_bytes > limit:
            self._damage = DamagedTar(
                f"{self._packed.tell()} bytes of {self._name} decompress to more than {limit} bytes; videos do not "
                "compress like this"
            )
            self._chunks = iter(())

    def _decompress(self) -> Iterator[bytes]:
        """Yield the content in chunks. DamagedTar if the file is cut, damaged, or followed by other data."""
        try:
            yield from _zstd(self._packed) if self._name == "zstd" else _streams(self._packed, self._name)
        except (zlib.error, lzma.LZMAError, EOFError, pa.ArrowException) as error:
            raise DamagedTar(f"the {self._name} data is damaged or cut: {error}"[:200]) from None
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise  # of the store; bz2 and Arrow raise plain ones for damaged data
            raise DamagedTar(f"the {self._name} data is damaged or cut: {error}"[:200]) from None


def _streams(packed: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the content of all compressed streams in a file. Zeros may follow them."""
    data = packed.read(READ_BYTES)
    while data:
        decompressor = NEW_DECOMPRESSOR[name]()
        while not decompressor.eof:
            if decompressor.needs_input and not data and not (data := packed.read(READ_BYTES)):
                raise EOFError("it ends early")
            chunk = decompressor.decompress(data, CHUNK_BYTES)
            data = b""
            if chunk:
                yield chunk
        data = decompressor.unused_data.lstrip(b"\0")
        while not data and (more := packed.read(READ_BYTES)):
            data = more.lstrip(b"\0")
        magic = next(magic for magic, other in MAGIC.items() if other == name)
        data += packed.read(len(magic)) if data and len(data) < len(magic) else b""
        if data and not data.startswith(magic):
            raise EOFError(f"data that is not {name} follows it")


def _zstd(packed: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of all zstd frames in a file."""
    with pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


class _View(io.RawIOBase):
    """A reader of a copy with a position of its own."""

    def __init__(self, copy: _GrowingCopy) -> None:
        self._copy = copy
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence != io.SEEK_END, "the size is only known at the end"
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._copy.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

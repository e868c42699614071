"""Reads sources with retries. A broken connection or a short answer is never taken for the end of a file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from pipeline.errors import ConfigError, KeyRefusal, StoreError, StoreRefusal
from pipeline.storage.drivers.errors import (
    ShortRead,
    describe_error,
    is_about_expired_keys,
    is_about_keys,
    is_missing,
    is_transient,
    remote_errors,
)
from pipeline.storage.drivers.waits import requests_to
from pipeline.storage.retry import SHORT_PATIENCE_S, retried
from pipeline.storage.urls import FileFacts, canonical, open_filesystem, scheme_of

BLOCK_BYTES = 8 << 20
"""Bytes that one request to a store asks for."""
BUFFER_BYTES = 1 << 20
"""Bytes read ahead in memory."""

T = TypeVar("T")


def file_facts(url: str, *, fresh: bool = True) -> FileFacts:
    """Size and entity tag of a file. FileNotFoundError if there is none, StoreError if the store does not answer.

    ``fresh``: take no facts that are some seconds old.
    """
    fs, path = open_filesystem(url)
    return retry_call(url, lambda: FileFacts.of(_info(fs, path, fresh=fresh)))


def is_folder(url: str, below: str = "") -> bool:
    """Return whether there is a folder at a URL, or ``below`` it. StoreError if the store does not answer.

    fsspec's ``isdir`` would say no to every error.
    """
    fs, path = open_filesystem(url)
    path = f"{path.rstrip('/')}/{below}" if below else path

    def request() -> bool:
        try:
            return bool(_info(fs, path)["type"] == "directory")
        except NotADirectoryError:
            return False

    try:
        return retry_call(url, request)
    except FileNotFoundError:
        return False


def _info(fs: Any, path: str, *, fresh: bool = True) -> dict[str, Any]:
    with _http_status_kept():
        info: dict[str, Any] = getattr(fs, "fresh_info", fs.info)(path) if fresh else fs.info(path)
        return info


def existing_file_facts(url: str) -> FileFacts:
    """Size and entity tag of a file that the user named. ConfigError if there is none."""
    try:
        return file_facts(url)
    except FileNotFoundError:
        raise ConfigError(f"there is no file at '{canonical(url)}'") from None


def open_retrying(url: str, size_bytes: int, block_bytes: int | None = None) -> IO[bytes]:
    """Open a file for reading and seeking. FileNotFoundError, at the first read, if there is no such file.

    Reads raise StoreError if the store gives fewer bytes than ``size_bytes`` (0 if the size is not known).
    ``block_bytes``: bytes that one request asks for, if not ``BLOCK_BYTES``. Small blocks suit reads that are far apart.
    """
    block_bytes = block_bytes or BLOCK_BYTES
    return io.BufferedReader(_RetryingFile(url, size_bytes, block_bytes), min(BUFFER_BYTES, block_bytes))


def read_whole(url: str, size_bytes: int) -> bytes:
    """Read a file in one request. Errors are those of ``open_retrying``."""
    fs, path = open_filesystem(url)

    def read() -> bytes:
        content: bytes = fs.cat_file(path)
        if size_bytes and len(content) != size_bytes:
            raise ShortRead(f"{len(content)} of {size_bytes} bytes came")
        return content

    return retry_call(url, read)


def retry_call(url: str, call: Callable[[], T]) -> T:
    """Call the file system of a source, with retries. FileNotFoundError and StoreError name the source.

    The StoreError is a StoreRefusal if trying again cannot help, and a KeyRefusal if other keys are needed. It is neither
    if the keys have expired.
    """
    try:
        with requests_to(canonical(url)):
            return retried(call, longest_s=_longest_s(url))
    except remote_errors() as error:
        if is_missing(error):
            raise FileNotFoundError(canonical(url)) from None
        raise _error_class(error)(f"{canonical(url)} could not be read: {describe_error(error)}") from None


def _error_class(error: BaseException) -> type[StoreError]:
    if is_transient(error) or is_about_expired_keys(error):
        return StoreError
    return KeyRefusal if is_about_keys(error) else StoreRefusal


def _longest_s(url: str) -> float | None:
    """The time for which a file is tried again, where it is shorter than for a store."""
    return SHORT_PATIENCE_S if scheme_of(url) == "file" else None


@contextlib.contextmanager
def _http_status_kept() -> Iterator[None]:
    """Raise the HTTP client's own error where fsspec hides it: fsspec calls every failed request "not found"."""
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, remote_errors()) and not is_missing(cause):
            raise cause from None
        raise


class _RetryingFile(io.RawIOBase):
    """A file that is opened again at its position after a failure."""

    def __init__(self, url: str, size_bytes: int, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._name = canonical(url)
        self._size_bytes = size_bytes
        self._fs, self._path = open_filesystem(url)
        self._file: Any = None
        self._no_ranges = False
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self._end() if start is None else start)
        return self._position

    def tell(self) -> int:
        return self._position

    def _end(self) -> int:
        """The size of the file. UnsupportedOperation if the store does not tell it."""
        if not self._size_bytes:
            size_bytes = retry_call(self._name, lambda: self._fs.info(self._path).get("size"))
            if size_bytes is None:
                raise io.UnsupportedOperation(f"the store does not tell the size of {self._name}")
            return int(size_bytes)
        return self._size_bytes

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position on, or as much of it as the block or the file has. StoreError names the file."""
        length = len(buffer)
        if self._size_bytes:
            length = min(length, self._size_bytes - self._position)
        if length <= 0:
            return 0
        try:
            with requests_to(self._name):
                data = retried(lambda: self._attempt(length), longest_s=_longest_s(self._name))
        except remote_errors() as error:
            if is_missing(error):
                raise FileNotFoundError(self._name) from None
            raise StoreError(
                f"{self._name} could not be read at byte {self._position}: {describe_error(error)}"
            ) from None
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._close_file()
        super().close()

    def _attempt(self, length: int) -> bytes:
        """Read up to ``length`` bytes at the position; after a failure the next attempt opens the file again."""
        try:
            with _http_status_kept():
                self._seek_in_file()
            data: bytes = self._file.read(length)
        except ValueError:
            self._close_file()
            if self._no_ranges:
                raise
            self._no_ranges = True  # the server ignores ranges: it only gives whole files
            return self._attempt(length)
        except BaseException:
            self._close_file()
            raise
        if not data and self._size_bytes:
            self._close_file()
            raise ShortRead(f"the file ended there, but should have {self._size_bytes} bytes")
        return data

    def _seek_in_file(self) -> None:
        """Open the file if it is not open, and move to the position: by reading on if the server has no ranges."""
        if self._file is not None and self._no_ranges and self._file.tell() > self._position:
            self._close_file()
        if self._file is None:
            self._file = self._fs.open(self._path, "rb", block_size=0 if self._no_ranges else self._block_bytes)
        if not self._no_ranges:
            self._file.seek(self._position)
            return
        while (distance := self._position - self._file.tell()) and self._file.read(min(distance, BUFFER_BYTES)):
            pass

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

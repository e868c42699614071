"""Sources read so that a broken connection or a short answer is tried again, and never taken for a file's end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.retry import ShortRead, remote_errors, retried
from pipeline.storage.urls import FileFacts, canonical, open_filesystem, scheme_of

BLOCK_BYTES = 8 << 20
"""Of one request to a store."""
BUFFER_BYTES = 1 << 20

T = TypeVar("T")


def file_facts(url: str) -> FileFacts:
    """Size and entity tag of a file. FileNotFoundError if there is none, StoreError if that cannot be learnt."""
    fs, path = open_source(url)

    def ask() -> FileFacts:
        with _as_the_server_said():
            return FileFacts.of(fs.info(path))

    return retry_call(url, ask)


def open_retrying(url: str, size_bytes: int) -> IO[bytes]:
    """The file for reading, whole: StoreError where it gives fewer bytes than ``size_bytes`` (0: unknown).

    It can seek. FileNotFoundError, at the first read, if there is no such file.
    """
    return io.BufferedReader(_RetryingFile(url, size_bytes), BUFFER_BYTES)


def read_whole(url: str, size_bytes: int) -> bytes:
    """The file's content, in one request; errors as of ``open_retrying``."""
    fs, path = open_source(url)

    def read() -> bytes:
        content: bytes = fs.cat_file(path)
        if size_bytes and len(content) != size_bytes:
            raise ShortRead(f"{len(content)} of {size_bytes} bytes came")
        return content

    return retry_call(url, read)


def retry_call(url: str, call: Callable[[], T]) -> T:
    """What a call to the source's file system gives, after retries. FileNotFoundError and StoreError name the source."""
    try:
        return retried(call)
    except FileNotFoundError:
        raise FileNotFoundError(canonical(url)) from None
    except remote_errors() as error:
        raise StoreError(f"{canonical(url)} could not be read: {reason(error)}") from None


def open_source(url: str) -> tuple[Any, str]:
    """The file system of a source and the path in it; ConfigError where its driver is not installed."""
    try:
        return open_filesystem(url)
    except ImportError as error:
        raise ConfigError(f"'{scheme_of(url)}://' URLs need a driver that is not installed: {error}") from None


def reason(error: Exception) -> str:
    """What went wrong, without the URL that clients quote: its query may be a signature."""
    text = error.args[0] if isinstance(error, ShortRead) else getattr(error, "strerror", None)
    status = getattr(error, "status", None)
    return f"{type(error).__name__}{f' {status}' if status else ''}{f': {text}' if text else ''}"


@contextlib.contextmanager
def _as_the_server_said() -> Iterator[None]:
    """fsspec says "not found" of whatever an HTTP server answers; this lets its real answer through."""
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, remote_errors()) and getattr(cause, "status", None) not in (404, 410):
            raise cause from None
        raise


class _RetryingFile(io.RawIOBase):
    """Reads from where it is, opening the file again after a failure."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._name = canonical(url)
        self._size_bytes = size_bytes
        self._fs, self._path = open_source(url)
        self._file: Any = None
        self._streams = False
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size_bytes}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Bytes from here on, fewer than asked for only where a block or the file ends. StoreError names the file."""
        wanted = len(buffer)
        if self._size_bytes:
            wanted = min(wanted, self._size_bytes - self._place)
        if wanted <= 0:
            return 0
        try:
            data = retried(lambda: self._attempt(wanted))
        except FileNotFoundError:
            raise FileNotFoundError(self._name) from None
        except remote_errors() as error:
            raise StoreError(f"{self._name} could not be read at byte {self._place}: {reason(error)}") from None
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _attempt(self, wanted: int) -> bytes:
        try:
            with _as_the_server_said():
                self._go_to_place()
            data: bytes = self._file.read(wanted)
        except ValueError:
            self._let_go()
            if self._streams:
                raise
            self._streams = True  # the server has no ranges: it only gives files from their start
            return self._attempt(wanted)
        except BaseException:
            self._let_go()
            raise
        if not data and self._size_bytes:
            self._let_go()
            raise ShortRead(f"the file ended there, but should have {self._size_bytes} bytes")
        return data

    def _go_to_place(self) -> None:
        if self._file is not None and self._streams and self._file.tell() > self._place:
            self._let_go()
        if self._file is None:
            self._file = self._fs.open(self._path, "rb", block_size=0 if self._streams else BLOCK_BYTES)
        if not self._streams:
            self._file.seek(self._place)
            return
        while (ahead := self._place - self._file.tell()) and self._file.read(min(ahead, BUFFER_BYTES)):
            pass

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _file_facts(url: str) -> FileFacts:
    try:
        return file_facts(url)
    except FileNotFoundError:
        raise ConfigError(f"there is no file at '{canonical(url)}'") from None

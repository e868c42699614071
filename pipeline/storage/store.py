"""A few verbs over fsspec: the only place that opens URLs, and the only one that writes to the output.

``put_new`` is create-if-absent and all or nothing: a file appears whole under its name, or not at all, and never
replaces another. Nothing is ever renamed, and no listing or clock decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import fsspec

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.listing import walk
from pipeline.storage.retry import ShortRead, is_transient, remote_errors, retried
from pipeline.storage.urls import canonical, open_filesystem, scheme_of, without_secrets

PARTIAL = ".partial"
"""Folder of a local output where files are written before they are linked to their name."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class Store:
    """An output folder, local or remote. Paths are relative to it."""

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        self.url = canonical(url)
        self._fs, self._root = open_filesystem(url)
        self._local = scheme_of(url) == "file"
        self._single_writer = single_writer

    @property
    def folder(self) -> str | None:
        """Where the files are on this machine; None for a remote store."""
        return self._root.rstrip("/") if self._local else None

    @property
    def client(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """fsspec's file system and the output's place in it; of web servers the URL with its credentials."""
        return self._fs, self._root

    def get(self, path: str) -> bytes:
        """A whole file. FileNotFoundError if there is none."""

        def whole() -> bytes:
            data: bytes = self._fs.cat_file(self._at(path))
            return _complete(data, int(self._fs.info(self._at(path))["size"]))

        return self._tried(path, whole)

    def size(self, path: str) -> int | None:
        """A file's size in bytes; None if there is no such file."""
        try:
            return self._tried(path, lambda: int(self._fs.info(self._at(path))["size"]))
        except FileNotFoundError:
            return None

    def list_files(self, folder: str) -> dict[str, int]:
        """Size of every file below a folder, by path relative to the output; empty if there is no such folder.

        0 where the store does not tell sizes, as web servers' listings."""
        found = walk(self._fs, self._at(folder), partial(self._tried, folder))
        return {f"{folder}/{path}".lstrip("/"): int(info["size"] or 0) for path, info in found}

    def top_level(self) -> set[str]:
        """Names of the files and folders at the top of the output, from one listing; empty if there is no output."""
        at = self._at("").rstrip("/")
        try:
            paths: list[str] = self._tried("", lambda: self._fs.ls(at, detail=False))
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes at each (offset, length), through one open file locally and concurrent range requests elsewhere.

        StoreError if the file ends before one of them does.
        """
        at = self._at(path)

        def local() -> list[bytes]:
            fd = os.open(at, os.O_RDONLY)
            try:
                return [os.pread(fd, length, offset) for offset, length in ranges]
            finally:
                os.close(fd)

        def remote() -> list[bytes]:
            parts = self._fs.cat_ranges(
                [at] * len(ranges), [o for o, _ in ranges], [o + n for o, n in ranges], on_error="raise"
            )
            return [_complete(part, length) for part, (_, length) in zip(parts, ranges, strict=True)]

        if not self._local:
            return self._tried(path, remote)
        with self._said(path):
            return [_complete(part, length) for part, (_, length) in zip(retried(local), ranges, strict=True)]

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """The bytes at an offset in one request. StoreError if the file ends before."""

        def whole() -> bytes:
            data: bytes = self._fs.cat_file(self._at(path), start=offset, end=offset + length)
            return _complete(data, length)

        return self._tried(path, whole)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._tried(path, lambda: self._fs.rm_file(self._at(path)))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path to write a file at before ``put_new``; gone afterwards. On the output's own disk where that is local.

        StoreError if that disk is full.
        """
        folder = self._at(PARTIAL) if self._local else tempfile.gettempdir()
        if self._local:
            os.makedirs(folder, exist_ok=True)
        path = Path(folder) / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield path
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise StoreError(f"{path} cannot be written: {_no_space(error, Path(folder))}") from error
        finally:
            path.unlink(missing_ok=True)

    def put_new(self, path: str, content: bytes | Path) -> bool:
        """Create ``path`` if it is absent. True: we created it. False: someone's complete file was there already.

        A False may also be our own file, when the store's answer was lost on the way and the request was repeated:
        callers to whom it matters read it back. StoreError if it cannot be written.
        """

        def create() -> bool:
            if self._single_writer and self._fs.exists(self._at(path)):
                return False
            try:
                if self._local:
                    self._link_new(path, content)
                else:
                    self._upload_new(path, content)
            except FileExistsError:
                return False
            return True

        # an upload in parts that someone swept away is missing when it is to be completed
        parts = not self._local and isinstance(content, Path)
        try:
            return self._tried(path, create, also=(FileNotFoundError,) if parts else ())
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{path} cannot be created: {error}") from error

    def put(self, path: str, content: bytes) -> None:
        """Write a file whole, also over another: for what is outside the output's promises, like the summary."""

        def replace() -> None:
            target = Path(self._at(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.scratch() as scratch:
                scratch.write_bytes(content)
                scratch.replace(target)

        if self._local:  # its folder may be removed while it is empty
            self._tried(path, replace, also=(FileNotFoundError,))
        else:
            self._tried(path, lambda: self._fs.pipe_file(self._at(path), content))

    def _upload_new(self, path: str, content: bytes | Path) -> None:
        mode = {} if self._single_writer else {"mode": "create"}
        if isinstance(content, Path):
            self._fs.put_file(str(content), self._at(path), **mode)
        else:
            self._fs.pipe_file(self._at(path), content, **mode)

    def _link_new(self, path: str, content: bytes | Path) -> None:
        target = Path(self._at(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch() as scratch:
            if isinstance(content, bytes):
                scratch.write_bytes(content)
                content = scratch
            elif content.stat().st_dev != target.parent.stat().st_dev:
                shutil.copyfile(content, scratch)
                content = scratch
            _fsync(content)
            failpoint(Failpoint.FILE_WRITTEN)
            if self._single_writer:
                content.replace(target)  # no hard links on some file systems
            else:
                os.link(content, target)
            failpoint(Failpoint.FILE_LINKED)
        _fsync(target.parent)

    def sweep(self) -> None:
        """Remove what writers on this machine that no longer run left behind in the scratch folder."""
        folder = Path(self._at(PARTIAL))
        if not self._local or not folder.is_dir():
            return
        for path in folder.iterdir():
            host, pid, _ = path.name.rsplit("-", 2)
            if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)
                failpoint(Failpoint.SCRATCH_REMOVED)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder and those in it, as far as they are empty. Object stores have no folders."""
        if self._local:
            for path, _, _ in os.walk(self._at(folder), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def abort_uploads(self, folder: str, wanted: Callable[[str], bool]) -> None:
        """Abort uploads in parts that were begun below ``folder`` and whose path is ``wanted``.

        S3 keeps, and bills, the parts of an upload whose writer died. Other stores have none.
        """
        if "s3" not in self._fs.protocol:
            return
        bucket, _, root = self._at("").partition("/")

        def abort() -> None:
            found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=root + folder).get("Uploads", [])
            for upload in (upload for upload in found if wanted(upload["Key"].removeprefix(root))):
                with contextlib.suppress(FileNotFoundError):  # completed or aborted meanwhile
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])

        self._tried(folder, abort)

    def probe(self) -> None:
        """Make sure that files can be created, and only once; ConfigError tells what to do where they cannot."""
        path = f".probe-{secrets.token_hex(8)}"
        try:
            self.put_new(path, b"probe")
            exclusive = not self.put_new(path, b"again") and self.get(path) == b"probe"
            self.delete(path)
        except StoreError as error:
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise
            raise ConfigError(f"the output cannot be written: {error}") from error
        if not exclusive:
            raise ConfigError(
                f"{self.url} does not keep a file from being written twice; "
                "give --single-writer if no other job writes there"
            )

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _tried(self, path: str, call: Callable[[], T], also: tuple[type[Exception], ...] = ()) -> T:
        """What the call gives, after retries; StoreError names the file."""
        with self._said(path):
            return retried(call, also=also)

    @contextlib.contextmanager
    def _said(self, path: str) -> Iterator[None]:
        """Name the file in what the store says of a failure."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except remote_errors() as error:
            what = without_secrets(str(error)) or type(error).__name__
            if isinstance(error, OSError) and error.errno in NO_SPACE and self._local:
                what = _no_space(error, Path(self._root))
            raise StoreError(f"{self.url}/{path}: {what}") from error


def _complete(data: bytes, expected_bytes: int) -> bytes:
    if len(data) != expected_bytes:
        raise ShortRead(f"got {len(data)} of {expected_bytes} bytes")
    return data


def _no_space(error: OSError, folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{error.strerror} ({shutil.disk_usage(folder).free} bytes are free); make room and run the command again"


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

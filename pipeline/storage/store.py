"""An output folder behind a few verbs over fsspec. Nothing else writes to an output.

``put_new`` creates a file only if it is absent, and all or nothing: the file appears whole under its name or not at all,
and never replaces another. On an object store nothing is ever renamed. No listing or clock decides what is committed.
"""

from __future__ import annotations

import contextlib
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
from pipeline.storage.listing import iter_files
from pipeline.storage.local_files import NO_SPACE, describe_full_disk, fsync
from pipeline.storage.retry import ShortRead, is_transient, remote_errors, retried
from pipeline.storage.urls import HTTP_SCHEMES, canonical, open_filesystem, scheme_of, without_secrets

PARTIAL = ".partial"
"""Folder of a local output where files are written before they are linked to their name."""

T = TypeVar("T")


class Store:
    """An output folder, local or remote. Paths are relative to it."""

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        self.url = canonical(url)
        self._fs, self._root = open_filesystem(url)
        self._local = scheme_of(url) == "file"
        self.lists_files = scheme_of(url) not in HTTP_SCHEMES
        """True if the store can list its files. Few web servers can, so files of web servers are found by their names."""
        self._single_writer = single_writer

    @property
    def folder(self) -> str | None:
        """The output's folder on this machine; None for a remote store."""
        return self._root.rstrip("/") if self._local else None

    @property
    def client(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """fsspec's file system and the output's path in it, which for web servers is the URL with its credentials."""
        return self._fs, self._root

    def get(self, path: str) -> bytes:
        """Read a whole file. FileNotFoundError if there is none."""

        def read() -> bytes:
            data: bytes = self._fs.cat_file(self._full_path(path))
            if not self.lists_files:
                return data  # web servers may send no length, or that of compressed bytes; their client checks it
            return _complete(data, int(self._fs.info(self._full_path(path))["size"]))

        return self._retry(path, read)

    def size(self, path: str) -> int | None:
        """A file's size in bytes; None if there is no such file."""
        try:
            return self._retry(path, lambda: int(self._fs.info(self._full_path(path))["size"]))
        except FileNotFoundError:
            return None

    def list_files(self, folder: str) -> dict[str, int]:
        """Size of every file below a folder, by path relative to the output; empty if there is no such folder.

        A size is 0 if the store does not tell it; web servers' listings do not.
        """
        files = iter_files(self._fs, self._full_path(folder), partial(self._retry, folder))
        return {f"{folder}/{path}".lstrip("/"): int(info["size"] or 0) for path, info in files}

    def top_level(self) -> set[str]:
        """Names of the files and folders at the top of the output, from one listing; empty if there is no output."""
        root = self._full_path("").rstrip("/")
        try:
            paths: list[str] = self._retry("", lambda: self._fs.ls(root, detail=False))
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read the bytes at each (offset, length). StoreError if the file ends before one of the ranges does.

        A local file is opened once; a remote one gets concurrent range requests.
        """
        full_path = self._full_path(path)

        def read_local() -> list[bytes]:
            fd = os.open(full_path, os.O_RDONLY)
            try:
                return [os.pread(fd, length, offset) for offset, length in ranges]
            finally:
                os.close(fd)

        def read_remote() -> list[bytes]:
            parts = self._fs.cat_ranges(
                [full_path] * len(ranges), [o for o, _ in ranges], [o + n for o, n in ranges], on_error="raise"
            )
            return [_complete(part, length) for part, (_, length) in zip(parts, ranges, strict=True)]

        if not self._local:
            return self._retry(path, read_remote)
        with self._store_errors(path):
            return [_complete(part, length) for part, (_, length) in zip(retried(read_local), ranges, strict=True)]

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at an offset in one request. StoreError if the file ends before."""

        def read() -> bytes:
            data: bytes = self._fs.cat_file(self._full_path(path), start=offset, end=offset + length)
            return _complete(data, length)

        return self._retry(path, read)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(path, lambda: self._fs.rm_file(self._full_path(path)))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path to write a file at before ``put_new``. The file is removed at the end.

        The path is on the output's own disk if the output is local. StoreError if the disk is full.
        """
        folder = self._full_path(PARTIAL) if self._local else tempfile.gettempdir()
        if self._local:
            os.makedirs(folder, exist_ok=True)
        path = Path(folder) / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield path
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise StoreError(f"{path} cannot be written: {describe_full_disk(error, Path(folder))}") from error
        finally:
            path.unlink(missing_ok=True)

    def put_new(self, path: str, content: bytes | Path) -> bool:
        """Create ``path`` if it is absent. Returns False if a complete file is there already.

        That file may also be our own: if the store's answer was lost, the request is repeated. Callers that must know
        read the file back. StoreError if the file cannot be written.
        """

        def create() -> bool:
            if self._single_writer and self._fs.exists(self._full_path(path)):
                return False
            try:
                if self._local:
                    self._link_new(path, content)
                else:
                    self._upload_new(path, content)
            except FileExistsError:
                return False
            return True

        # another job may abort an upload in parts; the store then answers "not found" when it is completed
        parts = not self._local and isinstance(content, Path)
        try:
            return self._retry(path, create, also=(FileNotFoundError,) if parts else ())
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{path} cannot be created: {error}") from error

    def put(self, path: str, content: bytes) -> None:
        """Write a whole file, over an old one if there is one. For files without promises, such as the summary."""

        def replace() -> None:
            target = Path(self._full_path(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.scratch() as scratch:
                scratch.write_bytes(content)
                scratch.replace(target)

        if self._local:  # another process may remove the folder while it is empty
            self._retry(path, replace, also=(FileNotFoundError,))
        else:
            self._retry(path, lambda: self._fs.pipe_file(self._full_path(path), content))

    def _upload_new(self, path: str, content: bytes | Path) -> None:
        mode = {} if self._single_writer else {"mode": "create"}
        if isinstance(content, Path):
            self._fs.put_file(str(content), self._full_path(path), **mode)
        else:
            self._fs.pipe_file(self._full_path(path), content, **mode)

    def _link_new(self, path: str, content: bytes | Path) -> None:
        target = Path(self._full_path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch() as scratch:
            if isinstance(content, bytes):
                scratch.write_bytes(content)
                content = scratch
            elif content.stat().st_dev != target.parent.stat().st_dev:
                shutil.copyfile(content, scratch)
                content = scratch
            fsync(content)
            failpoint(Failpoint.FILE_WRITTEN)
            if self._single_writer:
                content.replace(target)  # some file systems have no hard links
            else:
                os.link(content, target)
            failpoint(Failpoint.FILE_LINKED)
        fsync(target.parent)

    def sweep(self) -> None:
        """Remove the scratch files of writers on this machine that no longer run."""
        folder = Path(self._full_path(PARTIAL))
        if not self._local or not folder.is_dir():
            return
        for path in folder.iterdir():
            host, pid, _ = path.name.rsplit("-", 2)
            if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)
                failpoint(Failpoint.SCRATCH_REMOVED)

    def remove_empty(self, folder: str) -> None:
        """Remove the empty folders at and below ``folder``. Does nothing on object stores, which have no folders."""
        if self._local:
            for path, _, _ in os.walk(self._full_path(folder), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def abort_uploads(self, folder: str, wanted: Callable[[str], bool]) -> None:
        """Abort the unfinished uploads in parts below ``folder`` whose path is ``wanted``. Does nothing but on S3.

        S3 keeps, and bills, the parts of an upload whose writer died.
        """
        if "s3" not in self._fs.protocol:
            return
        bucket, _, root = self._full_path("").partition("/")

        def abort() -> None:
            answer = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=root + folder)
            uploads = answer.get("Uploads", [])
            for upload in (upload for upload in uploads if wanted(upload["Key"].removeprefix(root))):
                with contextlib.suppress(FileNotFoundError):  # it was completed or aborted in the meantime
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])

        self._retry(folder, abort)

    def probe(self) -> None:
        """Check that files can be created, and only once. ConfigError says what to do if they cannot."""
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
                f"{self.url} lets a second writer replace a file; give --single-writer if no other job writes there"
            )

    def _full_path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _retry(self, path: str, call: Callable[[], T], also: tuple[type[Exception], ...] = ()) -> T:
        """Make a call to the store, with retries. StoreError names the file."""
        with self._store_errors(path):
            return retried(call, also=also)

    @contextlib.contextmanager
    def _store_errors(self, path: str) -> Iterator[None]:
        """Replace an error of the store's client by a StoreError that names the file."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except remote_errors() as error:
            problem = without_secrets(str(error)) or type(error).__name__
            if isinstance(error, OSError) and error.errno in NO_SPACE and self._local:
                problem = describe_full_disk(error, Path(self._root))
            raise StoreError(f"{self.url}/{path}: {problem}") from error


def _complete(data: bytes, expected_bytes: int) -> bytes:
    """The data. ShortRead if it is not as long as expected."""
    if len(data) != expected_bytes:
        raise ShortRead(f"got {len(data)} of {expected_bytes} bytes")
    return data

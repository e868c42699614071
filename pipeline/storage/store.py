"""An output folder behind a few verbs over fsspec. Nothing else writes to an output.

``put_new`` creates a file only if it is absent, and all or nothing: the file appears whole under its name or not at all,
and never replaces another. On an object store nothing is ever renamed. No listing or clock decides what is committed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from pipeline.errors import StoreError
from pipeline.storage.connection import Connection
from pipeline.storage.drivers.errors import describe_error, http_status, is_missing, remote_errors
from pipeline.storage.drivers.waits import requests_to
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.listing import iter_files
from pipeline.storage.local.files import (
    NO_SPACE,
    UNSYNCED_FOLDERS,
    describe_full_disk,
    fsync_folder,
    is_left_by_dead_writer,
    link_new,
    make_file,
    make_folder,
    scratch_name,
)
from pipeline.storage.local.reads import read_ranges
from pipeline.storage.retry import SHORT_PATIENCE_S, check_length, check_range, retried
from pipeline.storage.uploads import abort_uploads, create_object, put_object, replaces_by_parts
from pipeline.storage.urls import HTTP_SCHEMES, canonical, check_inside, scheme_of

PARTIAL = ".partial"
"""Folder of a local output where files are written before they are linked to their name. It goes when it is empty."""

T = TypeVar("T")


class Store:
    """An output folder, local or remote. Paths are relative to it."""

    def __init__(
        self, url: str, *, single_writer: bool = False, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Open the client. ``storage_options``: arguments of fsspec's class, such as the headers of a web server."""
        self.url = canonical(url)
        self.connection = Connection(url, storage_options)
        self._local = scheme_of(url) == "file"
        self.lists_files = scheme_of(url) not in HTTP_SCHEMES
        """True if the store can list its files. Few web servers can, so files of web servers are found by their names."""
        self.single_writer = single_writer
        self.notes: set[str] = set()
        """Sentences about what this store does not do, for people."""

    @property
    def folder(self) -> str | None:
        """The output's folder on this machine; None for a remote store."""
        return self._root.rstrip("/") if self._local else None

    @property
    def client(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """fsspec's file system and the output's path in it, which for web servers is the URL with its credentials."""
        return self._fs, self._root

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return self.connection.fs

    @property
    def _root(self) -> str:
        return self.connection.root

    def with_own_client(self) -> Store:
        """The same output through a new client."""
        other = copy.copy(self)
        other.connection = self.connection.with_own_client()
        return other

    def below(self, path: str) -> Store:
        """A folder of this output as an output of its own, with the same options and signature."""
        other = copy.copy(self)
        other.url, other.notes = f"{self.url.rstrip('/')}/{path}", set()
        other.connection = self.connection.below(path)
        return other

    def get(self, path: str) -> bytes:
        """Read a whole file. FileNotFoundError if there is none."""

        def read() -> bytes:
            data: bytes = self._fs.cat_file(self._full_path(path))
            if not self.lists_files:
                return data  # web servers may send no length, or that of compressed bytes; their client checks it
            return check_length(data, int(self._fs.info(self._full_path(path))["size"]))

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

        def read_remote() -> list[bytes]:
            parts = self._fs.cat_ranges(
                [full_path] * len(ranges), [o for o, _ in ranges], [o + n for o, n in ranges], on_error="raise"
            )
            return [check_range(part, length) for part, (_, length) in zip(parts, ranges, strict=True)]

        if not self._local:
            return self._retry(path, read_remote)
        with self._store_errors(path):
            parts = retried(partial(read_ranges, full_path, ranges), longest_s=SHORT_PATIENCE_S)
            return [check_range(part, length) for part, (_, length) in zip(parts, ranges, strict=True)]

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at an offset in one request. StoreError if the file ends before."""

        def read() -> bytes:
            data: bytes = self._fs.cat_file(self._full_path(path), start=offset, end=offset + length)
            return check_range(data, length)

        return self._retry(path, read)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(path, lambda: self._fs.rm_file(self._full_path(path)))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty file to write before ``put_new``. It is removed at the end.

        It is on the output's own disk if the output is local. StoreError if the disk is full or not writable.
        """
        folder = f"{self._root}/{PARTIAL}" if self._local else tempfile.gettempdir()
        path = Path(folder) / scratch_name(secrets.token_hex(8))
        if self._local:  # another process may remove the folder while it is empty
            self._retry(PARTIAL, lambda: make_file(path), also=(FileNotFoundError,))
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

        tries = itertools.count()

        def create() -> bool:
            if self.single_writer and self._fs.exists(self._full_path(path)):
                return False
            try:
                if self._local:
                    self._link_new(path, content, copied=next(tries) > 0)
                elif self.single_writer:
                    put_object(self._fs, self._full_path(path), content)
                else:
                    create_object(self._fs, self._full_path(path), content)
            except FileExistsError:
                return False
            return True

        # another job may abort an upload in parts; the store then answers "not found" when it is completed
        parts = not self._local and isinstance(content, Path)
        try:
            return self._retry(path, create, also=(FileNotFoundError,) if parts else ())
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{path} cannot be created: {describe_error(error)}") from error

    def put(self, path: str, content: bytes) -> None:
        """Write a whole file, over an old one if there is one. For files without promises, such as the summary."""

        def replace() -> None:
            target = Path(self._full_path(path))
            make_folder(target.parent)
            with self.scratch() as scratch:
                scratch.write_bytes(content)
                scratch.replace(target)
            self.remove_empty(PARTIAL)

        if self._local:  # another process may remove the folder while it is empty
            self._retry(path, replace, also=(FileNotFoundError,))
        else:
            self._retry(path, lambda: self._fs.pipe_file(self._full_path(path), content))

    def _link_new(self, path: str, content: bytes | Path, *, copied: bool) -> None:
        target = Path(self._full_path(path))
        make_folder(target.parent)
        with self.scratch() as scratch:
            link_new(content, target, scratch, copied=copied, replace=self.single_writer)
        if not fsync_folder(target.parent):
            self.notes.add(UNSYNCED_FOLDERS)

    def sweep(self) -> None:
        """Remove the scratch files of writers on this machine that no longer run, and their empty folder."""
        folder = Path(self._root) / PARTIAL
        if not self._local or not folder.is_dir():
            return
        with self._store_errors(PARTIAL):
            for path in folder.iterdir():
                if is_left_by_dead_writer(path.name) and not path.is_dir():
                    path.unlink(missing_ok=True)
                    failpoint(Failpoint.SCRATCH_REMOVED)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty

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
        if "s3" in self._fs.protocol:
            path = self._full_path(folder)
            abort_uploads(self._fs, path, partial(self._retry, folder), lambda name: wanted(f"{folder}/{name}"))

    def replaces_by_parts(self, path: str) -> bool:
        """Try to replace a file by an upload in parts that must only create it. Return whether the store did replace it."""
        return "s3" in self._fs.protocol and self._retry(
            path, lambda: replaces_by_parts(self._fs, self._full_path(path))
        )

    def _full_path(self, path: str) -> str:
        """The path in the file system. IntegrityError if ``path`` leads out of the output."""
        check_inside(path, self.url)
        return self.connection.full_path(path)

    def _retry(self, path: str, call: Callable[[], T], also: tuple[type[Exception], ...] = ()) -> T:
        """Make a call to the store, with retries. StoreError names the file."""
        with self._store_errors(path):
            return retried(call, also=also, longest_s=SHORT_PATIENCE_S if self._local else None)

    @contextlib.contextmanager
    def _store_errors(self, path: str) -> Iterator[None]:
        """Replace an error of the store's client by a StoreError that names the file."""
        try:
            with requests_to(f"{self.url}/{path}"):
                yield
        except (FileNotFoundError, FileExistsError):
            raise
        except remote_errors() as error:
            if is_missing(error):
                raise FileNotFoundError(f"{self.url}/{path}") from error
            problem = describe_error(error)
            if isinstance(error, OSError) and error.errno in NO_SPACE and self._local:
                problem = describe_full_disk(error, Path(self._root))
            if self.connection.is_signed and http_status(error) in (401, 403):
                problem += "; the signature in the URL may have expired"
            raise StoreError(f"{self.url}/{path}: {problem}") from error

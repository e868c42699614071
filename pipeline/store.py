"""A few verbs over fsspec: the only place that opens URLs, and the only one that writes to the output.

``put_new`` is create-if-absent and all or nothing: a file appears whole under its name, or not at all, and never
replaces another. Nothing is ever renamed, and no listing or clock decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import fsspec

from pipeline.errors import ConfigError, StoreError

SCHEMES = ("file", "s3", "gs", "az", "abfs", "http", "https", "hf")
"""What a URL may begin with. Everything else (pipes, chains, archives inside URLs) is refused."""
PARTIAL = ".partial"
"""Folder of a local output where files are written before they are linked to their name."""


def scheme_of(url: str) -> str:
    """The scheme of a URL that may be opened; ``file`` for a plain path. ConfigError for any other."""
    if "::" in url:
        raise ConfigError(f"'{canonical(url)}' chains file systems, which is not supported")
    scheme, found, _ = url.partition("://")
    scheme = scheme if found else "file"
    if scheme not in SCHEMES:
        raise ConfigError(f"'{scheme}://' URLs are not supported; use one of {', '.join(SCHEMES)}")
    return scheme


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. Listings are never cached."""
    options: dict[str, Any] = {"auto_mkdir": False} if scheme_of(url) == "file" else {}
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
    return fs, path


def canonical(url: str) -> str:
    """The URL without credentials, query and fragment; a local path as an absolute ``file://`` URL."""
    if "://" not in url or url.startswith("file://"):
        return "file://" + os.path.abspath(url.removeprefix("file://"))
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What tells that a file is still the one that was planned."""

    size: int
    etag: str
    """Entity tag, or the modification time where the store has none; empty where it has neither."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> FileFacts:
        """From what fsspec's ``info`` or ``find`` say of a file."""
        etag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("mtime") or ""
        return cls(size=int(info.get("size") or 0), etag=str(etag).strip('"'))


class Store:
    """An output folder, local or remote. Paths are relative to it."""

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        self.url = canonical(url)
        self._fs, self._root = open_filesystem(url)
        self._local = scheme_of(url) == "file"
        self._single_writer = single_writer

    def get(self, path: str) -> bytes:
        """A whole file. FileNotFoundError if there is none."""
        with self._said(path):
            data: bytes = self._fs.cat_file(self._at(path))
            return data

    def size(self, path: str) -> int | None:
        """A file's size in bytes; None if there is no such file."""
        with self._said(path):
            try:
                return int(self._fs.info(self._at(path))["size"])
            except FileNotFoundError:
                return None

    def list_files(self, folder: str) -> dict[str, int]:
        """Size of every file below a folder, by path relative to the output; empty if there is no such folder."""
        with self._said(folder):
            found: dict[str, dict[str, Any]] = self._fs.find(self._at(folder), detail=True)
        start = len(self._root.rstrip("/")) + 1
        return {name[start:]: int(info["size"]) for name, info in sorted(found.items()) if info["type"] == "file"}

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes at each (offset, length), through one open file locally and concurrent range requests elsewhere."""
        with self._said(path):
            if self._local:
                fd = os.open(self._at(path), os.O_RDONLY)
                try:
                    return [os.pread(fd, length, offset) for offset, length in ranges]
                finally:
                    os.close(fd)
            at = self._at(path)
            parts: list[bytes] = self._fs.cat_ranges(
                [at] * len(ranges), [o for o, _ in ranges], [o + n for o, n in ranges], on_error="raise"
            )
            return parts

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with self._said(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path to write a file at before ``put_new``; gone afterwards. On the output's own disk where that is local."""
        folder = None
        if self._local:
            folder = self._at(PARTIAL)
            os.makedirs(folder, exist_ok=True)
        path = Path(folder or tempfile.gettempdir()) / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put_new(self, path: str, content: bytes | Path) -> bool:
        """Create ``path`` if it is absent. True: we created it. False: someone's complete file was there already.

        A False may also be our own file, when the store's answer was lost on the way and the request was repeated:
        callers to whom it matters read it back. StoreError if it cannot be written.
        """
        with self._said(path):
            try:
                if self._single_writer and self._fs.exists(self._at(path)):
                    return False
                if self._local:
                    self._link_new(path, content)
                else:
                    self._upload_new(path, content)
            except FileExistsError:
                return False
        return True

    def put(self, path: str, content: bytes) -> None:
        """Write a file whole, also over another: for what is outside the output's promises, like the summary."""
        with self._said(path):
            if not self._local:
                self._fs.pipe_file(self._at(path), content)
                return
            target = Path(self._at(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.scratch() as scratch:
                scratch.write_bytes(content)
                scratch.replace(target)

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
            if self._single_writer:
                content.replace(target)  # no hard links on some file systems
            else:
                os.link(content, target)
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
        with contextlib.suppress(OSError):  # other writers' files are still there
            folder.rmdir()

    def probe(self) -> None:
        """Make sure that files can be created, and only once; StoreError tells what to do where they cannot."""
        path = f".probe-{secrets.token_hex(8)}"
        try:
            created = [self.put_new(path, b"probe"), self.put_new(path, b"again")]
        finally:
            self.delete(path)
        if created != [True, False]:
            raise StoreError(
                f"{self.url} does not keep a file from being written twice; "
                "give --single-writer if no other job writes there"
            )

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextlib.contextmanager
    def _said(self, path: str) -> Iterator[None]:
        """Name the file in what the store says of a failure."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except remote_errors() as error:
            free = ""
            if getattr(error, "errno", None) == errno.ENOSPC and self._local:
                free = f" ({shutil.disk_usage(self._root).free} bytes are free)"
            raise StoreError(f"{self.url}/{path}: {_without_query(str(error))}{free}") from error


def remote_errors() -> tuple[type[Exception], ...]:
    """What file systems raise when they fail; the clients of object stores have exceptions of their own."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError, ClientError)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _without_query(text: str) -> str:
    """Errors of HTTP stores quote URLs, whose queries carry signatures."""
    return re.sub(r"\?\S+", "?...", text)

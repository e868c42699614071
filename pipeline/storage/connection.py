"""The client of a store and a folder in it. Forked and spawned processes, and options that change, get a new client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec

from pipeline.storage.drivers.options import options_stamp
from pipeline.storage.urls import HTTP_SCHEMES, SIGNATURE, canonical, open_filesystem, scheme_of


class Connection:
    """A URL, which may be signed, and the options of its client. It never shows either."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """url: a folder. A query that signs it goes to every file below it."""
        self._options = dict(options or {})
        self._query = ""
        self._url = url
        self._scheme = scheme_of(url)
        if self._scheme in HTTP_SCHEMES:
            self._url, question_mark, query = url.partition("#")[0].partition("?")
            self._query = question_mark + query
        elif self._scheme in ("az", "abfs") and (signature := SIGNATURE.search(url)):
            self._url = url[: signature.start()]
            self._options.setdefault("sas_token", signature[0].lstrip("?"))
        self._opened: tuple[object, fsspec.AbstractFileSystem, str] | None = None
        self.fs  # noqa: B018 (refuses wrong settings now)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The client of this process."""
        return self._open()[1]

    @property
    def root(self) -> str:
        """The folder's path in the client, which for web servers is a URL that may have credentials."""
        return self._open()[2]

    @property
    def is_plain(self) -> bool:
        """True if neither a signature nor options are needed to read from the URL."""
        return not self._query and not self._options and self.root.rstrip("/") == canonical(self._url).rstrip("/")

    @property
    def is_signed(self) -> bool:
        """True if requests are signed by the query of the URL."""
        return bool(self._query) or "sas_token" in self._options

    def full_path(self, path: str) -> str:
        """The path of a file in the client."""
        return f"{self.root.rstrip('/')}/{path}{self._query}"

    def options_for(self, url: str) -> Mapping[str, Any]:
        """The options, for a URL in the same bucket or on the same host; none for others, which must not get them."""
        ours, other = urlsplit(self._url), urlsplit(url)
        return self._options if (ours.scheme, ours.netloc) == (other.scheme, other.netloc) else {}

    def below(self, path: str) -> Connection:
        """A folder below this one, with the same options and signature."""
        return Connection(f"{self._url.rstrip('/')}/{path}{self._query}", self._options)

    def with_own_client(self) -> Connection:
        """The same folder through a new client, with connections of its own."""
        other = Connection(self._url + self._query, self._options)
        key, fs, root = other._open()
        if fs.async_impl:
            fs = type(fs)(*fs.storage_args, **fs.storage_options | {"skip_instance_cache": True})
        other._opened = key, fs, root
        return other

    def _open(self) -> tuple[object, fsspec.AbstractFileSystem, str]:
        opened = self._opened
        key = None if self._scheme == "file" else (os.getpid(), options_stamp())
        if opened is None or opened[0] != key:
            opened = (key, *open_filesystem(self._url, self._options))
            self._opened = opened
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __repr__(self) -> str:
        return f"Connection({canonical(self._url)!r})"

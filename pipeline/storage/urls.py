"""URLs and the file systems behind them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec

from pipeline.errors import ConfigError, IntegrityError
from stvae.file_identity import version_tag

SCHEMES = ("file", "s3", "gs", "az", "abfs", "http", "https", "hf")
"""Schemes that a URL may have. Others, such as pipes and archives, are refused, and so are chains of schemes."""
HTTP_SCHEMES = ("http", "https")
KEY_SCHEMES = ("s3", "gs")
"""Schemes in whose URLs ``?`` and ``#`` are characters of a key."""
SIGNATURE = re.compile(
    r"\?(?:versionId|X-(?:Amz|Goog)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Signature|Expires|token|sig)=.*", re.I | re.S
)
"""The query that chooses a version of an object or signs a request; it is not a part of the key."""

_clients: dict[tuple[type, int, str, str], fsspec.AbstractFileSystem] = {}


def suffix_of(path: str) -> str:
    """The suffix of a path or of a URL without a query, in lower case and without the dot; empty if it has none."""
    return PurePosixPath(path).suffix.lower().lstrip(".")


def scheme_of(url: str) -> str:
    """The scheme of a URL; ``file`` for a plain path. ConfigError if the URL may not be opened.

    ``::`` before the scheme chains file systems for fsspec, which is refused. Anywhere else it is a part of a name.
    """
    scheme, separator, _ = url.partition("://")
    scheme = scheme if separator else "file"
    if "::" in scheme:
        raise ConfigError(f"'{canonical(url)}' chains file systems, which is not supported")
    if scheme not in SCHEMES:
        raise ConfigError(f"'{scheme}://' URLs are not supported; use one of {', '.join(SCHEMES)}")
    return scheme


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. Listings are never cached.

    All threads share the clients of remote stores, because each takes a tenth of a second to connect.
    """
    scheme = scheme_of(url)
    options: dict[str, Any] = {"auto_mkdir": False} if scheme == "file" else {}
    if scheme in HTTP_SCHEMES:  # a range of compressed bytes cannot be read
        options = {"headers": {"Accept-Encoding": "identity"}}
    # not fsspec's url_to_fs, which splits names at "::"
    driver = fsspec.get_filesystem_class(scheme)
    options = {**driver._get_kwargs_from_urls(url), **options, "use_listings_cache": False, "skip_instance_cache": True}
    fs, path = driver(**options), driver._strip_protocol(url)
    if fs.async_impl:
        # a client reads these variables when it is made, and it does not survive a fork
        settings = sorted((n, value) for n, value in os.environ.items() if n.startswith("AWS_") or "PROXY" in n.upper())
        fs = _clients.setdefault((type(fs), os.getpid(), repr(fs.storage_options), repr(settings)), fs)
    return fs, path


def canonical(url: str) -> str:
    """The URL without credentials, query and fragment; a local path as an absolute ``file://`` URL.

    In keys of S3 and Google Cloud Storage ``?`` and ``#`` are characters like others, except before a signature.
    """
    if "://" not in url or url.startswith("file://"):
        return "file://" + os.path.abspath(url.removeprefix("file://"))
    scheme, _, rest = url.partition("://")
    if scheme in KEY_SCHEMES:
        bucket, slash, key = rest.partition("/")
        return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{without_signature(key)}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_signature(key: str) -> str:
    """The key of an object without a query that signs the request for it."""
    return SIGNATURE.sub("", key)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """Size and version of a file, to notice that it is no longer the one that was planned."""

    size: int
    """Size in bytes; 0 if the store does not tell it."""
    etag: str
    """Entity tag, or the modification time if the store has none; empty if it has neither."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> FileFacts:
        """Build the facts of a file from an entry of fsspec's ``info`` or ``find``."""
        return cls(size=int(info.get("size") or 0), etag=version_tag(info))


def without_secrets(text: str) -> str:
    """Remove queries and user names from the URLs in an error's text: they may hold signatures and passwords."""
    return re.sub(r"\?\S+", "?...", re.sub(r"://[^/\s@]+@", "://", text))


def leads_out(path: str) -> bool:
    """Return whether a path that should be relative to a folder may name something outside of it."""
    plain = unquote(path).replace("\\", "/")
    return plain.startswith("/") or "://" in plain or "\0" in plain or ".." in plain.split("/")


def check_inside(path: str, url: str) -> None:
    """Raise IntegrityError if a path, which may be from an index or a plan, leads out of the output at ``url``."""
    if leads_out(path):
        raise IntegrityError(
            f"{url}: the path {path!a} leads out of the output, so its metadata was not written by Latentmill"
        )

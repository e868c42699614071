"""URLs and the file systems behind them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec

from pipeline.errors import ConfigError, IntegrityError
from pipeline.storage.drivers.clients import DRIVERS, open_client
from pipeline.storage.drivers.errors import describe_error, remote_errors, tidy, without_secrets
from pipeline.storage.drivers.options import options_for
from stvae.file_identity import version_tag

SCHEMES = tuple(DRIVERS)
"""Schemes that a URL may have. Others, such as pipes and archives, are refused, and so are chains of schemes."""
OTHER_SPELLINGS = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "wasb": "abfs", "wasbs": "abfs"}
"""Schemes that other programs use, and ours. One spelling only, since a URL is the name of a source in the plan."""
HTTP_SCHEMES = ("http", "https")
KEY_SCHEMES = ("s3", "gs", "az", "abfs", "hf")
"""Schemes in whose URLs ``?`` and ``#`` are characters of a key."""
CREDENTIALS_SCHEMES = ("s3", "gs", "hf")
"""Those of them with nothing before ``@`` but credentials, which are refused. Azure's URLs have the container there."""
CREDENTIALS_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING",
    "abfs": "AZURE_STORAGE_CONNECTION_STRING",
    "hf": "HF_TOKEN",
}
"""Variables that hold what users put into URLs by mistake."""
HUB_TOKEN = re.compile(r"(?<=@)hf_[A-Za-z0-9]{20,}")
"""A token of the Hub where a URL has a revision."""
SIGNATURE = re.compile(
    r"\?(?:[^?]*&)?(?:versionId|X-(?:Amz|Goog)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Signature|Expires|(?:access_)?token|sig)=.*",
    re.I | re.S,
)
"""The query that chooses a version of an object or signs a request; it is not a part of the key."""


def suffix_of(path: str) -> str:
    """The suffix of a path or of a URL without a query, in lower case and without the dot; empty if it has none."""
    return PurePosixPath(path).suffix.lower().lstrip(".")


def scheme_of(url: str) -> str:
    """The scheme of a URL; ``file`` for a plain path. ConfigError if the URL may not be opened.

    ``::`` before the scheme chains file systems, which is refused. Elsewhere it is a part of a name.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme if separator else "file"
    if "::" in scheme:
        raise ConfigError(f"'{without_secrets(url)}' chains file systems, which is not supported")
    if scheme in OTHER_SPELLINGS:
        right = f"{OTHER_SPELLINGS[scheme]}://{rest}"
        raise ConfigError(
            f"'{scheme}://' URLs are written '{OTHER_SPELLINGS[scheme]}://' here: give '{canonical(right)}'"
        )
    if scheme not in SCHEMES:
        raise ConfigError(f"'{tidy(scheme)}://' URLs are not supported; use one of {', '.join(SCHEMES)}")
    return scheme


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. Listings are never cached, except the Hub's for a short time.

    All threads share the clients of remote stores. ``options``: arguments of the client, in addition to those that a file
    has for the URL (``drivers/options.py``). ConfigError if a client is not installed or lacks settings.
    """
    scheme = scheme_of(url)
    refuse_credentials(url)
    try:
        return open_client(scheme, url, options_for(url) | dict(options or {}))
    except ImportError as error:
        extra = DRIVERS[scheme].extra
        raise ConfigError(
            f"'{scheme}://' URLs need the extra '{extra}': pip install 'latentmill[{extra}]' ({error})"
        ) from None
    except Exception as error:
        if not isinstance(error, (ValueError, TypeError, *remote_errors())):
            raise
        raise ConfigError(f"'{canonical(url)}' cannot be opened: {describe_error(error)}") from None


def canonical(url: str) -> str:
    """The URL without credentials, query and fragment; a local path as an absolute ``file://`` URL.

    In keys of object stores ``?`` and ``#`` are characters like others, except before a signature. Container and account
    of an Azure URL (``abfs://CONTAINER@ACCOUNT...``) are parts of the name.
    """
    if "://" not in url or url.startswith("file://"):
        return "file://" + os.path.abspath(url.removeprefix("file://"))
    scheme, _, rest = url.partition("://")
    if scheme in KEY_SCHEMES:
        return f"{scheme}://{without_signature(_without_credentials(scheme, rest))}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def refuse_credentials(url: str) -> None:
    """ConfigError for a key, token or signature in the URL of an object store, whose client would send it as a name."""
    scheme, _, rest = url.partition("://")
    if scheme not in KEY_SCHEMES:
        return
    if _without_credentials(scheme, rest) != rest:
        raise ConfigError(
            f"'{canonical(url)}' was given with credentials in it; give them as {CREDENTIALS_SETTINGS[scheme]} instead"
        )
    signed = SIGNATURE.search(rest) if scheme in CREDENTIALS_SCHEMES else None
    if signed and "versionid=" not in signed[0].lower():
        raise ConfigError(f"'{canonical(url)}' was given with a signature; a signed URL begins with https://")


def _without_credentials(scheme: str, rest: str) -> str:
    """Return the part after ``://`` in the URL of an object store, without keys and tokens that should not be there.

    A secret that is not quoted may contain ``/``. A bucket may contain ``:``: it is then an access point or a tenant's.
    """
    if scheme not in CREDENTIALS_SCHEMES:
        return re.sub(r"^([^/@:]*):.*@", r"\1@", rest, flags=re.S)
    rest = re.sub(r"^(?:(?:AKIA|ASIA)[A-Z0-9]*:.*|[^/]*)@", "", rest, flags=re.S)
    return HUB_TOKEN.sub("...", rest) if scheme == "hf" else rest


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

"""Decides which URLs the rows of a manifest may point to. A manifest may come from anyone."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from yarl import URL

from pipeline.errors import ConfigError, Reject, Rejected
from pipeline.sources.item import Item
from pipeline.storage.urls import HTTP_SCHEMES, KEY_SCHEMES, canonical, refuse_credentials, scheme_of

NO_USER = ("az://", "abfs://", "hf://", "s3://arn:")
"""Starts of URLs without a user name. Azure's have a container before ``@``, and names of access points have colons."""


def key_of(target: Any, manifest_url: str) -> str:
    """The key of a row's item: its path, or its URL without the parts that may be a signature or a password."""
    key = "" if target is None else str(target)
    if "://" not in key and scheme_of(manifest_url) not in HTTP_SCHEMES:
        return key
    scheme = key.partition("://")[0]
    if not key.startswith(NO_USER):
        key = re.sub(r"(?<=//)[^/?#]*@", "", key)
        if re.search(r"//[^/?#\[]*:(?!\d*(?:[/?#]|$))", key):  # not a port, so a password that should have been quoted
            key = re.sub(r"(?<=//).*@", "", key)
    if scheme in KEY_SCHEMES:
        return canonical(key)
    return re.split(r"[?#]", key, maxsplit=1)[0]


def location_of(target: Any, manifest_url: str, root: str | None = None) -> str:
    """The URL that a row points to. Rejected if it is not allowed.

    Relative paths start at ``root`` and may not leave it. Without a root they start at the manifest's folder.
    ``http_download.py`` checks the addresses of HTTP hosts when it connects to them.
    """
    if not isinstance(target, str) or not target:
        raise Rejected("read", "no_path", "the row has no path")
    try:
        if root is not None and _is_relative(target):
            return _below(root, target)
        if "://" in target:
            location = target
            if scheme_of(target) in HTTP_SCHEMES and parse_url(target).raw_user is not None:
                raise Rejected("fetch", "forbidden_url", "a URL in a manifest may not have a user name or password")
        elif target.startswith("/"):
            location = target
        else:
            is_http = scheme_of(manifest_url) in HTTP_SCHEMES
            folder = (manifest_url.partition("?")[0] if is_http else manifest_url).rpartition("/")[0]
            location = f"{folder or '.'}/{target}"
        scheme = scheme_of(location)
        refuse_credentials(location)
    except ConfigError as error:
        raise Rejected("fetch", "forbidden_url", str(error)) from None
    except ValueError:
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    if scheme == "file" and scheme_of(manifest_url) != "file":
        raise Rejected("fetch", "forbidden_url", "a remote manifest may not point to local files")
    return location


def _is_relative(target: str) -> bool:
    return "://" not in target and not target.startswith("/")


def _below(root: str, path: str) -> str:
    """The URL of a relative path below the root that the user gave. Rejected if it leads out of the root."""
    if ".." in path.split("/") or (scheme_of(root) in HTTP_SCHEMES and ".." in unquote(path).split("/")):
        raise Rejected("fetch", "forbidden_url", "a path that starts at --root may not leave it with '..'")
    return f"{root.rstrip('/')}/{path}"


def locate(item: Item, target: Any, manifest_url: str, root: str | None) -> None:
    """Set the location and URI of an item to what its row points to, or its fault if that is not allowed."""
    try:
        item.location = location_of(target, manifest_url, root)
        item.uri = canonical(item.location)
        item.only_rows_name_store = scheme_of(item.location) not in {
            scheme_of(url) for url in (manifest_url, root) if url
        }
    except Rejected as rejected:
        item.fault = rejected.reject
    except ValueError:
        item.fault = Reject("fetch", "forbidden_url", "it is not a URL that can be read")


def parse_url(url: str, *, relative: bool = False) -> URL:
    """Parse an HTTP URL as the HTTP client does. Rejected if it cannot be parsed, or is not absolute and should be."""
    try:
        target = URL(url)
    except ValueError:
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    if not relative:
        check_http(target)
    return target


def check_http(target: URL) -> None:
    """Raise Rejected unless a URL, perhaps from a redirect, has the scheme http or https and a host."""
    if target.scheme not in HTTP_SCHEMES or not target.host:
        raise Rejected("fetch", "forbidden_url", "it leads to something that is not http or https")

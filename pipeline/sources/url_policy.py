"""What the rows of a manifest may point to. A manifest may come from anyone."""

from __future__ import annotations

import re
from typing import Any

from yarl import URL

from pipeline.errors import ConfigError, Rejected
from pipeline.storage.urls import scheme_of

HTTP = ("http", "https")


def key_of(target: Any, manifest_url: str) -> str:
    """A row's path as a key: of URLs without what may be a signature or password."""
    key = "" if target is None else str(target)
    if "://" not in key and scheme_of(manifest_url) not in HTTP:
        return key
    key = re.sub(r"(?<=//)[^/?#]*@", "", key)
    if re.search(r"//[^/?#\[]*:(?!\d*(?:[/?#]|$))", key):  # no port: a password that should have been quoted
        key = re.sub(r"(?<=//).*@", "", key)
    return re.split(r"[?#]", key, maxsplit=1)[0]


def location_of(target: Any, manifest_url: str) -> str:
    """The URL that a row points to; relative paths start at the manifest's folder. Rejected if it is not allowed.

    Whether an http host may be reached is seen when it is: see ``web.py``.
    """
    if not isinstance(target, str) or not target:
        raise Rejected("read", "no_path", "the row has no path")
    try:
        if "://" in target or "::" in target:
            location = target
            if scheme_of(target) in HTTP and parsed(target).raw_user is not None:
                raise Rejected("fetch", "forbidden_url", "a URL in a manifest may not have a user name or password")
        elif target.startswith("/"):
            location = target
        else:
            location = f"{manifest_url.partition('?')[0].rpartition('/')[0] or '.'}/{target}"
        scheme = scheme_of(location)
    except (ConfigError, ValueError):
        raise Rejected("fetch", "forbidden_url", "its scheme is unknown, or it chains file systems") from None
    if scheme == "file" and scheme_of(manifest_url) != "file":
        raise Rejected("fetch", "forbidden_url", "a remote manifest may not point to local files")
    return location


def parsed(url: str, *, relative: bool = False) -> URL:
    """The parts of an http URL as the client takes them; Rejected where it has none."""
    try:
        place = URL(url)
    except ValueError:
        raise Rejected("fetch", "forbidden_url", "it is not a URL that can be read") from None
    if not relative:
        check_http(place)
    return place


def check_http(place: URL) -> None:
    """Rejected unless a URL, perhaps of a redirect, is of http or https and names a host."""
    if place.scheme not in HTTP or not place.host:
        raise Rejected("fetch", "forbidden_url", "it leads to something that is not http or https")

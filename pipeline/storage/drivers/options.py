"""Options of stores that must not stand in a command line, such as tokens: from a JSON file of URLs and options.

Example: ``{"https://host/out": {"headers": {"Authorization": "Bearer ..."}}, "s3://bucket": {"profile": "training"}}``.
The options are the arguments of the scheme's fsspec class. They hold for all files below a URL; the longest URL wins.
"""

from __future__ import annotations

import json
import os
from typing import Any

from pipeline.errors import ConfigError

VARIABLE = "LATENTMILL_STORAGE_OPTIONS"
"""Environment variable that names the file. A file that changes is read again."""

_read: tuple[object, dict[str, dict[str, Any]]] = (None, {})
"""Stamp and content of the file when it was read last."""


def options_stamp() -> object:
    """A value that changes with the file; None without one. ConfigError if the file is not there."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{VARIABLE} names '{path}', which cannot be read: {error.strerror}") from None
    return path, status.st_mtime_ns, status.st_size, status.st_ino


def options_for(url: str) -> dict[str, Any]:
    """The options in the file for a URL; empty without a file. ConfigError if it is not what it should be."""
    global _read
    stamp = options_stamp()
    if stamp is None:
        return {}
    if _read[0] != stamp:
        _read = stamp, _read_file(os.environ[VARIABLE])
    below = [prefix for prefix in _read[1] if _is_below(url, prefix)]
    return _read[1][max(below, key=len)] if below else {}


def _read_file(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:  # the text of the error may quote the file
        raise ConfigError(f"{VARIABLE} names '{path}', which cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(options, dict) for options in content.values()):
        raise ConfigError(f"{VARIABLE} names '{path}', which must hold an object of options for each URL")
    return content


def _is_below(url: str, prefix: str) -> bool:
    """Return whether a URL is ``prefix`` or a file below it. A host or a folder that only begins alike is another one."""
    scheme, _, rest = url.partition("://")
    if scheme.startswith("http"):
        host, slash, path = rest.partition("/")
        url = f"{scheme}://{host.rpartition('@')[2].lower()}{slash}{path}"
    if prefix.endswith("/"):
        return url.startswith(prefix)
    return url.startswith(prefix) and url[len(prefix) : len(prefix) + 1] in ("", "/", "?")

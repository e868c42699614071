"""Files of web servers, which are found by their names because few web servers list folders."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import StoreError
from pipeline.storage.drivers.errors import http_status
from pipeline.storage.store import Store

UNUSED = "no-such-file.json"
"""A name that no output has. Its answer shows how a server answers for absent files."""
RATE_LIMITED = 429


def get_if_present(store: Store, path: str, is_genuine: Callable[[bytes], bool]) -> bytes | None:
    """Read a file of a web server; None if there is none.

    Some servers do not say 404. They refuse what is absent (S3 says 403, to hide names), or send a page for it, which is
    not ``is_genuine``. Such an answer means absent only if a name that no output has gets the same. StoreError if the file
    cannot be read.
    """
    try:
        content = store.get(path)
    except FileNotFoundError:
        return None
    except StoreError as error:
        status = http_status(error)
        is_refusal = status is not None and 400 <= status < 500 and status != RATE_LIMITED
        if is_refusal and status == _status_of_absent(store):
            return None
        raise
    return content if is_genuine(content) or _status_of_absent(store) is not None else None


def _status_of_absent(store: Store) -> int | None:
    """The HTTP status for a file that is not there; None if the server sends a page instead."""
    try:
        store.get(UNUSED)
    except FileNotFoundError:
        return 404
    except StoreError as error:
        return http_status(error)
    return None

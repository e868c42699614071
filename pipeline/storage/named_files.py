"""Files with numbers in their names, and files of web servers, which are asked for by name: few web servers list folders."""

from __future__ import annotations

import re
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


def last_listed(store: Store, folder: str, pattern: re.Pattern[str]) -> int | None:
    """The highest number in the names of a folder's files, the first group of ``pattern``; None without any."""
    numbers = (int(match[1]) for path in store.list_files(folder) if (match := pattern.fullmatch(path)))
    return max(numbers, default=None)


def newest_numbered(
    store: Store, path_of: Callable[[int], str], is_genuine: Callable[[bytes], bool]
) -> tuple[int, bytes] | None:
    """Find the file of the highest number by asking for names, in about 2 log2(n) requests for n files; None without any.

    ``path_of``: path of the file of a number. Numbers begin at 0 and have no gaps.
    """
    found: dict[int, bytes] = {}

    def exists(number: int) -> bool:
        content = get_if_present(store, path_of(number), is_genuine)
        if content is not None:
            found[number] = content
        return content is not None

    # Invariant: file `present` exists, file `absent` does not. The search asks for a higher present file each time.
    present, absent = -1, 0
    while exists(absent):
        present, absent = absent, 2 * absent + 1
    while absent - present > 1:
        middle = (present + absent) // 2
        present, absent = (middle, absent) if exists(middle) else (present, middle)
    return (present, found[present]) if found else None


def _status_of_absent(store: Store) -> int | None:
    """The HTTP status for a file that is not there; None if the server sends a page instead."""
    try:
        store.get(UNUSED)
    except FileNotFoundError:
        return 404
    except StoreError as error:
        return http_status(error)
    return None

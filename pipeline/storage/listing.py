"""Lists the files below a folder one by one, so that ten million of them need no more memory than one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

ListedFile = tuple[str, dict[str, Any]]
"""A path relative to the folder, and the store's facts of the file: ``size`` and perhaps ``ETag`` or ``mtime``."""
Retry = Callable[[Callable[[], Any]], Any]
"""Makes one request, with retries, and returns its result."""


def iter_files(fs: Any, root: str, retry: Retry) -> Iterator[ListedFile]:
    """Yield every file below a folder, sorted by path; nothing if there is no such folder. Links are not followed.

    ``retry`` makes each request of its own, so that a long listing does not start over when one of them fails.
    """
    root = root.rstrip("/")
    if "file" in fs.protocol:
        return _iter_local(root, "", retry)
    if "s3" in fs.protocol:
        return _iter_s3(fs, root, retry)
    return _iter_any(fs, root, retry)


def _iter_local(root: str, folder: str, retry: Retry) -> Iterator[ListedFile]:
    for name in retry(partial(_sorted_names, f"{root}/{folder}")):
        if name.endswith("/"):
            yield from _iter_local(root, f"{folder}{name}", retry)
            continue
        try:
            status = os.stat(f"{root}/{folder}{name}", follow_symlinks=False)
        except FileNotFoundError:  # removed since the folder was listed
            continue
        yield f"{folder}{name}", {"size": status.st_size, "mtime": status.st_mtime}


def _sorted_names(folder: str) -> list[str]:
    """Names of files, and of folders with a slash at the end, so that they sort like the paths below them."""
    try:
        with os.scandir(folder) as entries:
            types = ((e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False)) for e in entries)
            return sorted(f"{name}/" if is_dir else name for name, is_dir, is_file in types if is_dir or is_file)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _iter_s3(fs: Any, root: str, retry: Retry) -> Iterator[ListedFile]:
    bucket, prefix, _ = fs.split_path(root)
    prefix = f"{prefix}/" if prefix else ""
    request: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = retry(partial(fs.call_s3, "list_objects_v2", **request))
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):  # consoles make such objects to show an empty folder
                yield entry["Key"].removeprefix(prefix), {"size": entry["Size"], "ETag": entry["ETag"]}
        if not page.get("NextContinuationToken"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _iter_any(fs: Any, root: str, retry: Retry) -> Iterator[ListedFile]:
    entries: dict[str, dict[str, Any]] = retry(partial(fs.find, root, detail=True))
    for name, info in sorted(entries.items()):
        if info["type"] == "file":
            yield name[len(root) + 1 :], info

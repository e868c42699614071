"""Lists the files below a folder one by one, so that ten million of them need no more memory than one page."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipeline.storage.local.links import LinkPolicy

ListedFile = tuple[str, dict[str, Any]]
"""A path relative to the folder, and the store's facts of the file: ``size`` and perhaps ``ETag`` or ``mtime``."""
Retry = Callable[[Callable[[], Any]], Any]
"""Makes one request, with retries, and returns its result."""


def iter_files(fs: Any, root: str, retry: Retry, links: LinkPolicy | None = None) -> Iterator[ListedFile]:
    """Yield every file below a folder, sorted by path; nothing if there is no such folder.

    ``retry`` makes each request of its own, so that a long listing does not start over when one of them fails.
    ``links`` chooses the symbolic links to follow on a local disk; without it, none are followed.
    """
    root = root.rstrip("/")
    if "file" in fs.protocol:
        return _iter_local(root, "", retry, links)
    if "s3" in fs.protocol:
        return _iter_s3(fs, root, retry)
    return _iter_any(fs, root, retry)


def list_folder(fs: Any, folder: str, first: str, last: str, retry: Retry) -> Iterator[tuple[str, int | None]]:
    """Yield name and size of every file directly in a folder, in no order; nothing if there is no such folder.

    Names outside ``first`` to ``last`` may be missing. Local file systems give no sizes, and folders and links as well.
    """
    if "file" in fs.protocol:
        return ((name, None) for name in retry(partial(_names, folder)))
    if "s3" in fs.protocol:
        prefix = f"{fs.split_path(folder.rstrip('/'))[1]}/".lstrip("/")
        listed = _iter_s3(fs, folder, retry, StartAfter=prefix + first, Delimiter="/")
        files = ((path, info["size"]) for path, info in listed)
        return itertools.takewhile(lambda file: file[0] <= last, files)
    entries = retry(partial(_entries, fs, folder))
    return ((entry["name"].rpartition("/")[2], entry["size"]) for entry in entries if entry["type"] == "file")


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entries(fs: Any, folder: str) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = fs.ls(folder, detail=True)
        return entries
    except (FileNotFoundError, NotADirectoryError):
        return []


def _iter_local(root: str, folder: str, retry: Retry, links: LinkPolicy | None) -> Iterator[ListedFile]:
    for name in retry(partial(_sorted_names, f"{root}/{folder}", links)):
        if name.endswith("/"):
            yield from _iter_local(root, f"{folder}{name}", retry, links)
            continue
        status = _status(f"{root}/{folder}{name}", links is not None, retry)
        if status is None:  # removed since the folder was listed
            continue
        yield f"{folder}{name}", {"size": status.st_size, "mtime": status.st_mtime}


def _status(path: str, follow: bool, retry: Retry) -> os.stat_result | None:
    """The status of a file; None if it is gone. Only a failure is retried, since a retry costs more than the request."""
    try:
        with contextlib.suppress(OSError):
            return os.stat(path, follow_symlinks=follow)
        status: os.stat_result = retry(partial(os.stat, path, follow_symlinks=follow))
        return status
    except FileNotFoundError:
        return None


def _sorted_names(folder: str, links: LinkPolicy | None) -> list[str]:
    """Names of files, and of folders with a slash at the end, so that they sort like the paths below them."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    names.append(f"{entry.name}/")
                elif entry.is_file(follow_symlinks=False) or (
                    links is not None
                    and entry.is_symlink()
                    and links.follows(entry.path, PurePosixPath(entry.name).suffix.lower())
                ):
                    names.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names)


def _iter_s3(fs: Any, root: str, retry: Retry, **options: str) -> Iterator[ListedFile]:
    bucket, prefix, _ = fs.split_path(root.rstrip("/"))
    prefix = f"{prefix}/" if prefix else ""
    request: dict[str, str] = {"Bucket": bucket, "Prefix": prefix} | options
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

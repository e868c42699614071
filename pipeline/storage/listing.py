"""Files below a folder, one after the other: ten million of them need no more memory than one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
Listed = tuple[str, dict[str, Any]]
"""A path relative to the folder, and what the store says of the file: ``size`` and perhaps ``ETag`` or ``mtime``."""


def walk(fs: Any, root: str, tried: Callable[[Callable[[], Any]], Any]) -> Iterator[Listed]:
    """Every file below a folder, sorted by path; nothing if there is no such folder. Links are not followed.

    ``tried`` makes each request, so that a long listing does not start over when one of them fails.
    """
    root = root.rstrip("/")
    if "file" in fs.protocol:
        return _walk_local(root, "", tried)
    if "s3" in fs.protocol:
        return _walk_s3(fs, root, tried)
    return _walk_any(fs, root, tried)


def _walk_local(root: str, below: str, tried: Callable[[Callable[[], Any]], Any]) -> Iterator[Listed]:
    for name in tried(partial(_names, f"{root}/{below}")):
        if name.endswith("/"):
            yield from _walk_local(root, f"{below}{name}", tried)
            continue
        try:
            found = os.stat(f"{root}/{below}{name}", follow_symlinks=False)
        except FileNotFoundError:  # removed meanwhile
            continue
        yield f"{below}{name}", {"size": found.st_size, "mtime": found.st_mtime}


def _names(folder: str) -> list[str]:
    """Files and folders, these with a slash behind: sorted, they come in the order of the paths below them."""
    try:
        with os.scandir(folder) as entries:
            kinds = ((e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False)) for e in entries)
            return sorted(f"{name}/" if is_dir else name for name, is_dir, is_file in kinds if is_dir or is_file)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk_s3(fs: Any, root: str, tried: Callable[[Callable[[], Any]], Any]) -> Iterator[Listed]:
    bucket, prefix, _ = fs.split_path(root)
    prefix = f"{prefix}/" if prefix else ""
    where: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = tried(partial(fs.call_s3, "list_objects_v2", **where))
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):  # what consoles make to show an empty folder
                yield found["Key"].removeprefix(prefix), {"size": found["Size"], "ETag": found["ETag"]}
        if not page.get("NextContinuationToken"):
            return
        where["ContinuationToken"] = page["NextContinuationToken"]


def _walk_any(fs: Any, root: str, tried: Callable[[Callable[[], Any]], Any]) -> Iterator[Listed]:
    found: dict[str, dict[str, Any]] = tried(partial(fs.find, root, detail=True))
    for name, info in sorted(found.items()):
        if info["type"] == "file":
            yield name[len(root) + 1 :], info

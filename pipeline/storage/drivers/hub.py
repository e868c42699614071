"""Repositories of the Hugging Face Hub with few requests: a folder is listed once for all of its files.

The Hub allows some 1,000 requests in 5 minutes. Reading a file takes one, and listing a folder takes one per 1,000 entries.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfFileSystem
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

PAGE_ENTRIES = 1000
"""Number of entries that one request lists."""
SECONDS_PER_PAGE = 10.0
"""Time for which a listing counts as new, per page, so that listing again and again takes one request in 10 s at most."""
KEPT_S = 60.0
"""Further time for which it tells the sizes of files whose version was checked when their unit began."""
MAX_ENTRIES = 200_000
"""Number of entries that are remembered. Files of further folders are looked up one by one."""


@dataclass(frozen=True, slots=True)
class _Listing:
    entries: dict[str, dict[str, Any]]
    """Facts of files and folders as fsspec's ``info`` gives them, by path."""
    made_at: float

    def is_recent(self, kept_s: float) -> bool:
        """Return whether it was made within ``kept_s``, or has so many pages that it should not be made again yet."""
        return time.monotonic() - self.made_at < kept_s + SECONDS_PER_PAGE * len(self.entries) / PAGE_ENTRIES


class HubFiles(HfFileSystem):  # type: ignore[misc]
    """The Hub's file system, which threads may share."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._listings: dict[str, _Listing] = {}
        self._many: set[str] = set()
        """Folders with more entries than a page."""
        self._listing_lock = threading.RLock()

    def _repo_and_revision_exist(self, *repo: Any) -> Any:
        """Remember only that a repository exists: it may be there the next time."""
        result = super()._repo_and_revision_exist(*repo)
        if not result[0]:
            self._repo_and_revision_exists_cache.clear()
        return result

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget all listings, after a write."""
        self._listings.clear()
        super().invalidate_cache(path)

    def find(self, path: str, maxdepth: int | None = None, detail: bool = False, **options: Any) -> Any:
        """List the files below a folder anew, and remember them by folder."""
        with self._listing_lock:
            found = super().find(path, maxdepth=maxdepth, detail=True, **options | {"refresh": True})
            if maxdepth is None and len(found) <= MAX_ENTRIES:
                for folder, infos in self.dircache.items():
                    self._remember(folder, infos)
            self.dircache.clear()
        return found if detail else list(found)

    def ls(
        self, path: str, detail: bool = True, refresh: bool = False, revision: str | None = None, **options: Any
    ) -> Any:
        """List a folder, or take a listing of it that is not old."""
        folder = self.resolve_path(path, revision=revision).unresolve()
        with self._listing_lock:
            listing = None if refresh or options else self._listing(folder, 0.0)
            if listing is None:
                infos = super().ls(path, detail=True, refresh=True, revision=revision, **options)
                self.dircache.clear()
                if not (len(infos) == 1 and infos[0]["name"] == folder):  # a file
                    listing = self._remember(folder, infos)
            else:
                infos = list(listing.entries.values())
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, refresh: bool = False, revision: str | None = None, **options: Any) -> dict[str, Any]:
        """Facts of a file or folder, from the listing of its folder if that is short, or by a request of its own.

        ``refresh``: take no listing that is not new.
        """
        resolved = self.resolve_path(path, revision=revision)
        if not resolved.path or not hasattr(resolved, "repo_id") or options:
            facts: dict[str, Any] = super().info(path, refresh=refresh, revision=revision, **options)
            self.dircache.clear()
            return facts
        name = resolved.unresolve()
        folder = self._parent(name)
        with self._listing_lock:
            listing = self._listing(folder, 0.0 if refresh else KEPT_S) or self._list_short(folder, resolved)
        if listing is not None:
            if name not in listing.entries:
                raise FileNotFoundError(path)
            return listing.entries[name]
        found = self._api.get_paths_info(
            resolved.repo_id, resolved.path_in_repo, revision=resolved.revision, repo_type=resolved.repo_type
        )
        if not found:
            raise FileNotFoundError(path)
        return _info(resolved.root, found[0])

    def isdir(self, path: str) -> bool:
        """Return whether there is such a folder. Raises the Hub's errors, which fsspec takes for a no."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return whether there is such a file. Raises the Hub's errors, which fsspec takes for a no."""
        return self._type(path) == "file"

    def exists(self, path: str, **options: Any) -> bool:
        """Return whether there is such a file or folder. Raises the Hub's errors, which fsspec takes for a no."""
        return bool(self._type(path, **options))

    def _type(self, path: str, **options: Any) -> str:
        try:
            return str(self.info(path, **options)["type"])
        except FileNotFoundError:
            return ""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Read a file or a range of it, in one request and without reading ahead."""
        if start is None and end is None:
            whole: bytes = super().cat_file(path, **options)
            return whole
        with self.open(path, "rb", cache_type="none", **options) as file:
            size = int(file.size)
            first, last = (
                min(max(n + size if n < 0 else n, 0), size) for n in (start or 0, size if end is None else end)
            )
            if last <= first:
                return b""
            file.seek(first)
            data: bytes = file.read(last - first)
            return data

    def fresh_info(self, path: str) -> dict[str, Any]:
        """Facts of a file or folder as it is now."""
        return self.info(path, refresh=True)

    def _listing(self, folder: str, kept_s: float) -> _Listing | None:
        """The remembered listing of a folder, unless it is old."""
        listing = self._listings.get(folder)
        return listing if listing is not None and listing.is_recent(kept_s) else None

    def _list_short(self, folder: str, child: Any) -> _Listing | None:
        """List a folder of which no more than a page is known; None if there are more entries."""
        if folder in self._many:
            return None
        path_in_repo = child.path_in_repo.rpartition("/")[0]
        tree = self._api.list_repo_tree(
            child.repo_id, path_in_repo or None, revision=child.revision, repo_type=child.repo_type
        )
        try:
            entries = list(itertools.islice(tree, PAGE_ENTRIES + 1))
        except EntryNotFoundError:
            entries = []
        if len(entries) > PAGE_ENTRIES:
            self._many.add(folder)
            return None
        return self._remember(folder, [_info(child.root, entry) for entry in entries])

    def _remember(self, folder: str, infos: list[dict[str, Any]]) -> _Listing:
        listing = _Listing({info["name"]: info for info in infos}, time.monotonic())
        if sum(len(other.entries) for other in self._listings.values()) + len(infos) > MAX_ENTRIES:
            self._listings.clear()
        self._listings[folder] = listing
        return listing


def _info(root: str, entry: Any) -> dict[str, Any]:
    """The facts of an entry of the Hub's listing, as fsspec gives them."""
    facts = {"name": f"{root}/{entry.path}", "size": 0, "type": "directory"}
    if isinstance(entry, RepoFile):
        facts |= {"size": entry.size, "type": "file", "blob_id": entry.blob_id, "lfs": entry.lfs}
        facts |= {"xet_hash": entry.xet_hash, "last_commit": entry.last_commit, "security": entry.security}
    return facts

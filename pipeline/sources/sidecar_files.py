"""Finds the sidecar files beside the media files of a folder, and reads them."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from pipeline.errors import Rejected, StoreRefusal
from pipeline.sources.retrying_file import file_facts, read_whole, retry_call
from pipeline.sources.sidecars import MAX_BYTES, choose_sidecars, is_sidecar, sidecar_suffixes, too_large
from pipeline.storage.listing import list_folder
from pipeline.storage.local.links import LinkPolicy
from pipeline.storage.urls import HTTP_SCHEMES, open_filesystem, scheme_of, suffix_of

LAST_CHARACTER = "\U0010ffff"


@dataclass(kw_only=True, slots=True)
class SidecarFiles:
    """The sidecar files of some media files of a folder, found by listing."""

    url: str
    """URL of the folder."""
    names: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Paths of files below the folder by the shared part of their path (up to the dot) and their suffix in lower case."""
    sizes: dict[str, int | None] = field(default_factory=dict)
    """Sizes by path; None where reading tells."""
    links: LinkPolicy | None = None
    """Chooses the symbolic links that may be followed; without it, none may."""

    def add(self, stem: str, suffix: str, path: str, size_bytes: int | None) -> None:
        """Add a file. If names differ only in case, the one in lower case, which sorts last, is used."""
        self.names[stem][suffix.lower()] = max(path, self.names[stem].get(suffix.lower(), ""))
        self.sizes[path] = size_bytes

    def read(self, path: str) -> dict[str, bytes]:
        """The sidecar files of a media file, by role. Rejected if one of them may not be read."""
        stem = path.rpartition(".")[0]
        contents = {}
        for role, suffix in choose_sidecars(suffix_of(path), self.names[stem]).items():
            found = self.names[stem][suffix]
            try:
                contents[role] = _read_sidecar(f"{self.url.rstrip('/')}/{found}", suffix, self.sizes[found], self.links)
            except FileNotFoundError:  # gone since it was listed, or a folder
                continue
        return contents


def find_sidecars(url: str, paths: Iterable[str], links: LinkPolicy | None = None) -> SidecarFiles | None:
    """List the sidecar files of the media files at ``paths`` below a folder; None if the store has no listings."""
    if scheme_of(url) in HTTP_SCHEMES:
        return None
    stems: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, slash, name = path.rpartition("/")
        stems[folder + slash].add(name.rpartition(".")[0])
    fs, root = open_filesystem(url)
    found = SidecarFiles(url=url, links=links)
    for folder, known in stems.items():
        # sidecar files need not sort like their media files: "a-1.mp4" is before "a.mp4", and "a.txt" after "a.b.mp4"
        first, last = min(f"{stem}." for stem in known), max(f"{stem}.{LAST_CHARACTER}" for stem in known)
        place = f"{root.rstrip('/')}/{folder}"
        for name, size_bytes in list_folder(fs, place, first, last, partial(retry_call, url)):
            if not is_sidecar(name):
                continue
            for dot in (index for index, character in enumerate(name) if character == "."):
                if name[:dot] in known:
                    found.add(folder + name[:dot], name[dot + 1 :], folder + name, size_bytes)
    return found


def read_sidecars(location: str) -> dict[str, bytes]:
    """The sidecar files beside a media file, by role, without listing its folder. Rejected if one may not be read.

    Only suffixes in lower case are found. A refusal counts as absence: a web server over a store that may not be listed
    answers 403 for a file that is not there.
    """
    stem, _, media_suffix = location.rpartition(".")
    contents = {}
    for role, suffixes in sidecar_suffixes(media_suffix.lower()).items():
        for suffix in suffixes:
            try:
                contents[role] = _read_sidecar(f"{stem}.{suffix}", suffix)
                break
            except (FileNotFoundError, StoreRefusal):
                continue
    return contents


def _read_sidecar(url: str, suffix: str, size_bytes: int | None = None, links: LinkPolicy | None = None) -> bytes:
    """Read one sidecar file. FileNotFoundError if there is none, Rejected if it may not be read.

    ``size_bytes``: size of a remote file, if it is known.
    """
    return _read_local(url, suffix, links) if scheme_of(url) == "file" else _read_remote(url, suffix, size_bytes)


def _read_local(url: str, suffix: str, links: LinkPolicy | None) -> bytes:
    path = url.removeprefix("file://")
    if links is not None and os.path.islink(path):
        path = str(links.target(path) or path)
    try:
        # do not follow a link out of the folder, and do not wait for a pipe that nothing writes to
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(url) from None
    except OSError as error:
        problem = "is a symbolic link" if os.path.islink(path) else f"cannot be opened ({error.strerror})"
        raise Rejected("read", "bad_sidecar", f"its .{suffix} {problem}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError(url)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("read", "bad_sidecar", f"its .{suffix} is not a file")
        if status.st_size > MAX_BYTES:
            raise Rejected.because(too_large(suffix, status.st_size))
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(fd)


def _read_remote(url: str, suffix: str, size_bytes: int | None) -> bytes:
    if size_bytes is None:
        size_bytes = file_facts(url).size
    if size_bytes > MAX_BYTES:
        raise Rejected.because(too_large(suffix, size_bytes))
    return read_whole(url, size_bytes)

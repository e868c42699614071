"""The sources that URLs, patterns and folders stand for.

A source is one tar, one manifest, or one folder of files. Its name is its canonical URL (no credentials, no query), or
what the user calls it with ``NAME=URL``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import braceexpand

from pipeline.errors import ConfigError
from pipeline.sources import manifest as manifests
from pipeline.sources.file_table import Files
from pipeline.sources.retrying_file import asked, file_facts, open_source
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.listing import walk
from pipeline.storage.store import FileFacts, canonical, scheme_of

VIDEO_SUFFIXES = frozenset("mp4 m4v mov mkv webm avi ts mts m2ts mpg mpeg flv ogv wmv asf 3gp".split())
IMAGE_SUFFIXES = frozenset("jpg jpeg png webp".split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES

NO_FACTS = FileFacts(size=0, etag="")
Kind = Literal["tar", "manifest", "folder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One tar, manifest or folder as planning saw it."""

    name: str
    kind: Kind
    url: str
    """As given, with what is needed to open it. Never written to the output."""
    facts: FileFacts = NO_FACTS
    """Of a tar or manifest."""
    files: Files = field(default_factory=Files)
    """Of a folder, by path."""


def find_sources(specs: Sequence[str]) -> list[Source]:
    """Every source that the given URLs, patterns and folders stand for. ConfigError where one matches nothing."""
    found: dict[str, Source] = {}
    for spec in specs:
        for source in _find(spec):
            if source.name in found:
                raise ConfigError(f"source '{source.name}' is given twice; name one of them with NAME=URL")
            found[source.name] = source
    return list(found.values())


def _find(spec: str) -> list[Source]:
    match = re.fullmatch(r"([\w.-]+)=(.+)", spec)
    name, url = match.groups() if match else (None, spec)
    scheme_of(url)
    kinds = {path: _kind(path) for path in _expand(url)}
    unknown = [canonical(path) for path, kind in kinds.items() if kind is None]
    if unknown or not kinds:
        raise ConfigError(f"no videos, tars, manifests or folder at '{(unknown or [canonical(url)])[0]}'")
    folders: dict[str, list[str]] = {}
    for path, kind in kinds.items():
        if kind == "media":
            folders.setdefault(path.rpartition("/")[0] or ".", []).append(path)
    opened = [path for path, kind in kinds.items() if kind != "media"]
    many = len(opened) + len(folders) > 1

    def named(path: str) -> str:
        if name is None:
            return canonical(path)
        return f"{name}/{PurePosixPath(canonical(path)).name}" if many else name

    return list(in_parallel(lambda path: _open_source(named(path), kinds[path], path), opened)) + [
        Source(name=named(folder), kind="folder", url=folder, files=_given_files(paths))
        for folder, paths in folders.items()
    ]


def _expand(url: str) -> list[str]:
    """The URLs that a pattern with braces or wildcards stands for; one that exists literally stands for itself."""
    local = scheme_of(url) == "file"
    if local and os.path.exists(url.removeprefix("file://")):
        return [url]
    expanded = list(braceexpand.braceexpand(url))
    if scheme_of(url) in ("http", "https"):
        return expanded
    paths = []
    for pattern in expanded:
        if re.search(r"[*?\[]", pattern):
            fs, path = open_source(pattern)
            paths += [
                str(p) if local else fs.unstrip_protocol(p) for p in sorted(asked(pattern, partial(fs.glob, path)))
            ]
        else:
            paths.append(pattern)
    return paths


def _kind(url: str) -> str | None:
    suffix = _suffix(canonical(url))
    if suffix == "tar":
        return "tar"
    if suffix in manifests.SUFFIXES:
        return "manifest"
    if suffix in MEDIA_SUFFIXES:
        return "media"
    fs, path = open_source(url)
    return "folder" if scheme_of(url) not in ("http", "https") and asked(url, lambda: fs.isdir(path)) else None


def _open_source(name: str, kind: str | None, url: str) -> Source:
    if kind == "folder":
        return Source(name=name, kind="folder", url=url, files=_list_media(url))
    return Source(name=name, kind="tar" if kind == "tar" else "manifest", url=url, facts=_file_facts(url))


def _file_facts(url: str) -> FileFacts:
    try:
        return file_facts(url)
    except FileNotFoundError:
        raise ConfigError(f"there is no file at '{canonical(url)}'") from None


def _list_media(url: str) -> Files:
    """Media files below a folder, sorted by path; symbolic links are not followed."""
    fs, root = open_source(url)
    tars = False

    def media() -> Iterator[tuple[str, FileFacts]]:
        nonlocal tars
        for path, info in walk(fs, root, partial(asked, url)):
            suffix = _suffix(path)
            tars |= suffix == "tar"
            if suffix in MEDIA_SUFFIXES:
                _check_name(path, url)
                yield path, FileFacts.of(info)

    files = Files.of(media())
    if not files:
        hint = f"; it holds tars: give '{canonical(url)}/*.tar'" if tars else ""
        raise ConfigError(f"no videos or images below '{canonical(url)}'{hint}")
    return files


def _check_name(path: str, url: str) -> None:
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if path != shown:
        raise ConfigError(f"a file below '{canonical(url)}' has a name that is not UTF-8: '{shown}'; rename it")


def _given_files(urls: list[str]) -> Files:
    for url in urls:
        if scheme_of(url) in ("http", "https") and "?" in url:
            raise ConfigError(
                f"'{canonical(url)}' is given with a query, which would be written to the plan as a part of its name; "
                "give such URLs in a manifest"
            )
    names = (url.rpartition("/")[2] for url in sorted(urls))
    return Files.of(zip(names, in_parallel(_file_facts, sorted(urls)), strict=True))


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower().lstrip(".")

"""The sources that URLs, patterns and folders stand for.

A source is one tar, one manifest, or one folder of files. Its name is its canonical URL (no credentials, no query), or
what the user calls it with ``NAME=URL``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

import braceexpand

from pipeline.errors import ConfigError
from pipeline.sources import manifest as manifests
from pipeline.sources.folder import _given_files, _list_media
from pipeline.sources.item import MEDIA_SUFFIXES
from pipeline.sources.retrying_file import _file_facts, open_source, retry_call
from pipeline.sources.units import Source
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.urls import _suffix, canonical, scheme_of


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
        Source(name=named(folder), format="folder", url=folder, files=_given_files(paths))
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
                str(p) if local else fs.unstrip_protocol(p) for p in sorted(retry_call(pattern, partial(fs.glob, path)))
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
    return "folder" if scheme_of(url) not in ("http", "https") and retry_call(url, lambda: fs.isdir(path)) else None


def _open_source(name: str, kind: str | None, url: str) -> Source:
    if kind == "folder":
        return Source(name=name, format="folder", url=url, files=_list_media(url))
    return Source(name=name, format="tar" if kind == "tar" else "manifest", url=url, facts=_file_facts(url))

"""Turns the URLs, patterns and folders of ``--source`` into sources.

A source is one tar, one manifest, or one folder of files. Its name is its canonical URL (no credentials, no query), or
the NAME in ``NAME=URL``. A path that exists is not taken for ``NAME=URL``, even if it has an equals sign.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import braceexpand

from pipeline.errors import ConfigError
from pipeline.sources.formats import FORMATS, recognize
from pipeline.sources.item import is_system_file
from pipeline.sources.layouts.contents import not_read
from pipeline.sources.retrying_file import file_facts, retry_call
from pipeline.sources.units import Source
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.local.links import LinkPolicy
from pipeline.storage.urls import HTTP_SCHEMES, canonical, open_filesystem, scheme_of

WILDCARDS = r"[*?\[]"
_Key = tuple[str, str]
"""Name of a format, and URL of a source."""


class _Found(NamedTuple):
    """The sources of one argument."""

    name: str | None
    """The NAME in ``NAME=URL``."""
    parts: dict[_Key, list[str]]
    """URLs by the source that they belong to."""
    notes: list[str]


def find_sources(specs: Sequence[str]) -> list[Source]:
    """Every source that the given URLs, patterns and folders stand for. ConfigError if one of them matches nothing.

    Files of one folder are one source, also if they are given one by one.
    """
    try:
        return _open_all(_merge([_find(spec) for spec in specs]))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file or folder at '{error}'") from None


def _merge(found: list[_Found]) -> list[_Found]:
    """Move the files of a folder that are given one by one to the first of them. ConfigError for a file given twice."""
    first: dict[_Key, list[str]] = {}
    for one in found:
        for key in [key for key in one.parts if one.name is None]:
            urls = first.setdefault(key, one.parts[key])
            if urls is one.parts[key]:
                continue
            others = one.parts.pop(key)
            if set(urls) & set(others) or key[1] in (*urls, *others):  # a file twice, or beside its folder
                raise ConfigError(f"source '{canonical(key[1])}' is given twice; name one of them with NAME=URL")
            urls += others
    return [one for one in found if one.parts]


def _open_all(found: list[_Found]) -> list[Source]:
    sources: dict[str, Source] = {}
    for one in found:
        for source in _open(one):
            if source.name in sources:
                raise ConfigError(f"source '{source.name}' is given twice; name one of them with NAME=URL")
            sources[source.name] = source
    return list(sources.values())


def _find(spec: str) -> _Found:
    """The sources that one ``URL`` or ``NAME=URL`` stands for."""
    match = None if _is_path(spec) else re.fullmatch(r"([\w.-]+)=(.+)", spec)
    name, url = match.groups() if match else (None, spec)
    scheme_of(url)
    parts, notes = _group_by_source(url)
    return _Found(name, parts, notes)


def _open(found: _Found) -> list[Source]:
    def open_one(key: _Key) -> Source:
        format_name, source_url = key
        source_name = canonical(source_url)
        if found.name is not None:
            several = len(found.parts) > 1
            source_name = f"{found.name}/{PurePosixPath(source_name).name}" if several else found.name
        return FORMATS[format_name].open(source_name, source_url, found.parts[key])

    first, *others = map_concurrently(open_one, found.parts)
    return [dataclasses.replace(first, notes=(*first.notes, *found.notes)), *others]


def _is_path(spec: str) -> bool:
    """Return whether the whole text is a local path or pattern of something that exists, like ``date=2024/x.parquet``."""
    try:
        return any(os.path.lexists(path) or any(glob.iglob(path)) for path in braceexpand.braceexpand(spec))
    except ValueError:
        return os.path.lexists(spec)


def _group_by_source(url: str) -> tuple[dict[_Key, list[str]], list[str]]:
    """The URLs that ``url`` stands for, by the source that they belong to; and notes."""
    parts: dict[_Key, list[str]] = {}
    paths, notes = _expand(url)
    for path in dict.fromkeys(paths):
        source_format = recognize(path)
        if source_format is None:
            raise ConfigError(_why_unreadable(path))
        parts.setdefault((source_format.name, source_format.source_url(path)), []).append(path)
    if not paths:
        raise ConfigError("; ".join([f"no videos, tars, manifests or folder at '{canonical(url)}'", *notes]))
    return parts, notes


def _why_unreadable(url: str) -> str:
    """The message for a URL that no format recognizes."""
    try:
        file_facts(url)
    except FileNotFoundError:
        return f"there is no file or folder at '{canonical(url)}'"
    return not_read(
        url, sorted({f".{suffix}" for source_format in FORMATS.values() for suffix in source_format.suffixes})
    )


def _expand(url: str) -> tuple[list[str], list[str]]:
    """The URLs that a pattern with braces or wildcards stands for, and notes about what was passed over.

    A local path that exists stands for itself.
    """
    local = scheme_of(url) == "file"
    if local and os.path.exists(url.removeprefix("file://")):
        return [url], []
    try:
        expanded = list(braceexpand.braceexpand(url))
    except ValueError:
        raise ConfigError(f"source '{canonical(url)}' has a brace without its partner; expected {{00..99}}") from None
    if scheme_of(url) in HTTP_SCHEMES:
        return expanded, []
    folder = _folder_of_pattern(url)
    links = LinkPolicy(folder) if local else None
    paths = []
    for pattern in expanded:
        if not re.search(WILDCARDS, pattern):
            if links is not None and pattern != url and _leads_out(pattern, folder, links):
                raise ConfigError(
                    f"'{canonical(pattern)}' is a link that leads out of '{folder}', which a pattern does not follow; "
                    "name it in a --source of its own"
                )
            paths.append(pattern)
            continue
        fs, path = open_filesystem(pattern)
        matches = [name for name in sorted(retry_call(pattern, partial(fs.glob, path))) if not is_system_file(name)]
        if links is None:
            paths += [_url_of_match(pattern, match, fs) for match in matches]
        else:
            paths += [str(match) for match in matches if not _leads_out(match, folder, links)]
    outside = links.outside if links else 0
    return paths, [f"{outside} links lead out of '{folder}' and are passed over"] if outside else []


def _url_of_match(pattern: str, match: str, fs: Any) -> str:
    """The URL of a remote file that a pattern matches, with the account or credentials of the pattern."""
    host = re.match(r"\w+://[^/]*@[^/]*/", pattern)
    return host[0] + match.partition("/")[2] if host else str(fs.unstrip_protocol(match))


def _folder_of_pattern(url: str) -> str:
    """The local folder in which a pattern with braces or wildcards searches."""
    path = url.removeprefix("file://")
    folder, slash, _ = re.split(rf"{WILDCARDS}|{{", path, maxsplit=1)[0].rpartition("/")
    return folder or slash or "."


def _leads_out(path: str, folder: str, links: LinkPolicy) -> bool:
    """Return whether a link leads out of the folder of a pattern. A ``..`` that the user wrote may."""
    path = path.removeprefix("file://")
    is_below = PurePosixPath(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    return is_below and links.leads_out(path)

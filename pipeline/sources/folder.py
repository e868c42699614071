"""Folder sources: media files below a folder, with files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pipeline.errors import ConfigError, Rejected, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import sidecars
from pipeline.sources.file_table import Files
from pipeline.sources.item import MEDIA_SUFFIXES, Item
from pipeline.sources.retrying_file import _file_facts, open_source, retry_call
from pipeline.sources.sidecars import _describe
from pipeline.sources.units import Source, Unit, _unit
from pipeline.storage.concurrency import in_parallel
from pipeline.storage.listing import walk
from pipeline.storage.urls import FileFacts, _suffix, canonical, scheme_of


def _folder_items(unit: Unit, url: str, recipe: Recipe) -> Iterator[Item]:
    for ordinal, file in enumerate(unit.files, unit.start):
        location = f"{url.rstrip('/')}/{file.path}"
        item = Item(ordinal=ordinal, key=file.path, uri=canonical(location), facts=file.facts, location=location)
        try:
            _describe(item, sidecars.beside(location), recipe)
        except Rejected as rejected:
            item.fault = rejected.reject
        yield item


def _list_media(url: str) -> Files:
    """Media files below a folder, sorted by path; symbolic links are not followed."""
    fs, root = open_source(url)
    tars = False

    def media() -> Iterator[tuple[str, FileFacts]]:
        nonlocal tars
        for path, info in walk(fs, root, partial(retry_call, url)):
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


def _folder_units(source: Source, before: list[Unit], recipe: Recipe, generation: int) -> Iterator[Unit]:
    """Files that are in no unit yet, in runs; SourceChanged if one that is in a unit has changed."""
    planned = Files.joined(unit.files for unit in before)
    new, changed = source.files.beside(planned)
    if changed:
        was, found = changed
        raise SourceChanged.between(f"{canonical(source.url)}/{found.path}", was.facts, found.facts)
    first = len(planned)
    for start in range(0, len(new), recipe.unit_clips):
        files = new.cut(start, min(start + recipe.unit_clips, len(new)))
        yield _unit(source, generation, start=first + start, stop=first + start + len(files), files=files)

"""Folder sources: media files below a folder, with caption and metadata files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from pipeline.errors import ConfigError, Rejected, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.caption_hints import caption_hint
from pipeline.sources.file_table import File, Files
from pipeline.sources.item import MEDIA_SUFFIXES, Item, is_system_file
from pipeline.sources.retrying_file import existing_file_facts, open_source, retry_call
from pipeline.sources.sidecar_files import find_sidecars, read_sidecars
from pipeline.sources.sidecars import add_sidecars
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, new_unit
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.listing import iter_files
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, canonical, scheme_of, suffix_of


class FolderFormat(SourceFormat):
    """All media files below a folder, or the ones that a pattern names. An item per file."""

    name = "folder"
    suffixes = MEDIA_SUFFIXES

    def recognizes(self, url: str) -> bool:
        """Return whether ``url`` is a media file or a folder. Asks the store about the latter."""
        if super().recognizes(url):
            return True
        if scheme_of(url) in HTTP_SCHEMES:  # web servers have no folders
            return False
        fs, path = open_source(url)
        return bool(retry_call(url, lambda: fs.isdir(path)))

    def source_url(self, url: str) -> str:
        """The folder of a media file; a folder itself."""
        return (url.rpartition("/")[0] or ".") if super().recognizes(url) else url

    def open(self, name: str, url: str, parts: list[str]) -> Source:
        """The folder's media files, or only the files in ``parts``."""
        files = _list_media_files(url) if url in parts else _given_media_files(parts)
        return Source(name=name, format=self.name, url=url, files=files)

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut the files that are in no unit yet. SourceChanged if a planned file has changed."""
        known = Files.concat(unit.files for unit in planned)
        new, changed = source.files.changes_since(known)
        if changed:
            before, now = changed
            raise SourceChanged.between(f"{canonical(source.url)}/{now.path}", before.facts, now.facts)
        units = []
        for first in range(0, len(new), recipe.unit_clips):
            files = new.slice(first, min(first + recipe.unit_clips, len(new)))
            start = len(known) + first
            units.append(new_unit(source, generation, start=start, stop=start + len(files), files=files))
        return NewUnits(units=units)

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per file, described by the sidecar files beside it."""
        return _items(url, list(enumerate(unit.files, unit.start)), recipe)

    def some_items(
        self, unit: Unit, ordinals: set[int], url: str, recipe: Recipe, columns: pa.Schema
    ) -> Iterator[Item]:
        """Yield the items with these ordinals; sidecar files of the others are not requested."""
        drawn = [
            (ordinal, next(iter(unit.files.slice(ordinal - unit.start, ordinal - unit.start + 1))))
            for ordinal in sorted(ordinals)
        ]
        return _items(url, drawn, recipe)

    def num_items(self, unit: Unit) -> int:
        """Number of files in the unit."""
        return len(unit.ordinals)

    def caption_hint(self, source: Source) -> str:
        """Tables below the folder, and folders of text files below or beside it."""
        return caption_hint(source.url, len(source.files))

    def cost(self, unit: Unit) -> int:
        """Bytes of the unit's files; their number if the store does not tell sizes."""
        return unit.files.size_bytes or self.num_items(unit)


def _items(url: str, files: list[tuple[int, File]], recipe: Recipe) -> Iterator[Item]:
    """Yield an item per file, given with its ordinal."""
    sidecars = find_sidecars(url, [file.path for _, file in files])
    for ordinal, file in files:
        location = f"{url.rstrip('/')}/{file.path}"
        item = Item(ordinal=ordinal, key=file.path, uri=canonical(location), facts=file.facts, location=location)
        try:
            add_sidecars(item, read_sidecars(location) if sidecars is None else sidecars.read(file.path), recipe)
        except Rejected as rejected:
            item.fault = rejected.reject
        yield item


def _list_media_files(url: str) -> Files:
    """Media files below a folder, sorted by path. Symbolic links are not followed. ConfigError if there are none."""
    fs, root = open_source(url)
    has_tars = False

    def media_files() -> Iterator[tuple[str, FileFacts]]:
        nonlocal has_tars
        for path, info in iter_files(fs, root, partial(retry_call, url)):
            suffix = suffix_of(path)
            has_tars |= suffix == "tar"
            if suffix in MEDIA_SUFFIXES and not is_system_file(path):
                _check_utf8(path, url)
                yield path, FileFacts.of(info)

    files = Files.of(media_files())
    if not files:
        hint = f"; it holds tars: give '{canonical(url)}/*.tar'" if has_tars else ""
        raise ConfigError(f"no videos or images below '{canonical(url)}'{hint}")
    return files


def _check_utf8(path: str, url: str) -> None:
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if path != shown:
        raise ConfigError(f"a file below '{canonical(url)}' has a name that is not UTF-8: '{shown}'; rename it")


def _given_media_files(urls: list[str]) -> Files:
    """The media files at these URLs, all in one folder, sorted by name."""
    for url in urls:
        if scheme_of(url) in HTTP_SCHEMES and "?" in url:
            raise ConfigError(
                f"'{canonical(url)}' is given with a query, which would be written to the plan as a part of its name; "
                "give such URLs in a manifest"
            )
    names = (url.rpartition("/")[2] for url in sorted(urls))
    return Files.of(zip(names, map_concurrently(existing_file_facts, sorted(urls)), strict=True))

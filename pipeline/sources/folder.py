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
from pipeline.sources.layouts.captions import set_caption
from pipeline.sources.layouts.contents import Contents
from pipeline.sources.layouts.folder_metadata import NAMES as METADATA_NAMES
from pipeline.sources.layouts.folder_metadata import (
    FolderMetadata,
    MetadataTable,
    check_tables_as_planned,
    decode_tables,
    encode_tables,
    find_tables,
    tables_beside,
    tables_of,
    usable_tables,
)
from pipeline.sources.retrying_file import existing_file_facts, is_folder, retry_call
from pipeline.sources.sidecar_files import find_sidecars, read_sidecars
from pipeline.sources.sidecars import add_sidecars
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, new_unit
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.listing import iter_files
from pipeline.storage.local.links import LinkPolicy
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, canonical, open_filesystem, scheme_of, suffix_of


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
        return is_folder(url)

    def source_url(self, url: str) -> str:
        """The folder of a media file; a folder itself."""
        return (url.rpartition("/")[0] or ".") if super().recognizes(url) else url

    def open(self, name: str, url: str, parts: list[str]) -> Source:
        """The folder's media files, or only the files in ``parts``."""
        if url not in parts:
            found = [] if scheme_of(url) in HTTP_SCHEMES else tables_beside(url)
            tables, _ = usable_tables(url, found, Files())  # it may describe files that are not given
            files = _given_media_files(parts)
            return Source(name=name, format=self.name, url=url, files=files, header=encode_tables(tables))
        files, metadata, notes = _list_files(url)
        tables, more_notes = usable_tables(url, find_tables(metadata), files)
        notes += more_notes
        return Source(name=name, format=self.name, url=url, files=files, header=encode_tables(tables), notes=notes)

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut the files that are in no unit yet. SourceChanged if a planned file has changed."""
        known = Files.concat(unit.files for unit in planned)
        new, changed = source.files.changes_since(known)
        if changed:
            before, now = changed
            raise SourceChanged.between(f"{canonical(source.url)}/{now.path}", before.facts, now.facts)
        tables = decode_tables(source.header)
        check_tables_as_planned(source.url, tables, (unit.header for unit in planned))
        units = []
        for first in range(0, len(new), recipe.unit_clips):
            files = new.slice(first, min(first + recipe.unit_clips, len(new)))
            start = len(known) + first
            header = encode_tables(tables_of(files, tables))
            units.append(new_unit(source, generation, start=start, stop=start + len(files), files=files, header=header))
        return NewUnits(units=units, columns=self._columns(source.url, tables, recipe))

    def _columns(self, url: str, tables: list[MetadataTable], recipe: Recipe) -> pa.Schema:
        """The columns of the folder's tables, and the column for the names of its folders."""
        columns = FolderMetadata(url, tables, recipe).columns()
        if not recipe.class_column:
            return columns
        if recipe.class_column in columns.names:
            raise ConfigError(
                f"--class-column {recipe.class_column}: a metadata file of '{canonical(url)}' has this column"
            )
        return columns.append(pa.field(recipe.class_column, pa.string()))

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per file, described by the sidecar files beside it and by the folder's table."""
        return _items(url, list(enumerate(unit.files, unit.start)), decode_tables(unit.header), recipe)

    def some_items(
        self, unit: Unit, ordinals: set[int], url: str, recipe: Recipe, columns: pa.Schema
    ) -> Iterator[Item]:
        """Yield the items with these ordinals; sidecar files of the others are not requested."""
        drawn = [
            (ordinal, next(iter(unit.files.slice(ordinal - unit.start, ordinal - unit.start + 1))))
            for ordinal in sorted(ordinals)
        ]
        return _items(url, drawn, decode_tables(unit.header), recipe)

    def num_items(self, unit: Unit) -> int:
        """Number of files in the unit."""
        return len(unit.ordinals)

    def caption_hint(self, source: Source) -> str:
        """Tables below the folder, and folders of text files below or beside it."""
        return caption_hint(source.url, len(source.files))

    def cost(self, unit: Unit) -> int:
        """Bytes of the unit's files; their number if the store does not tell sizes."""
        return unit.files.size_bytes or self.num_items(unit)


def _items(url: str, files: list[tuple[int, File]], tables: list[MetadataTable], recipe: Recipe) -> Iterator[Item]:
    """Yield an item per file, given with its ordinal."""
    links = LinkPolicy(url.removeprefix("file://")) if scheme_of(url) == "file" else None
    sidecars = find_sidecars(url, [file.path for _, file in files], links)
    described = FolderMetadata(url, tables, recipe).rows([file for _, file in files])
    for (ordinal, file), (caption, meta, note) in zip(files, described, strict=True):
        location = f"{url.rstrip('/')}/{file.path}"
        item = Item(ordinal=ordinal, key=file.path, uri=canonical(location), facts=file.facts, location=location)
        try:
            add_sidecars(item, read_sidecars(location) if sidecars is None else sidecars.read(file.path), recipe)
        except Rejected as rejected:
            item.fault = rejected.reject
        item.meta |= meta
        item.note = item.note or note
        if recipe.class_column:
            item.meta[f"meta_{recipe.class_column}"] = file.path.rpartition("/")[0].rpartition("/")[2] or None
        if item.caption is None:
            set_caption(item, caption)
        yield item


def _list_files(url: str) -> tuple[Files, list[File], tuple[str, ...]]:
    """Media files below a folder, sorted by path, its files with metadata, and notes. ConfigError if it has no media."""
    fs, root = open_filesystem(url)
    links = LinkPolicy(root) if scheme_of(url) == "file" else None
    contents, metadata = Contents(), []

    def media_files() -> Iterator[tuple[str, FileFacts]]:
        for path, info in iter_files(fs, root, partial(retry_call, url), links):
            if is_system_file(path):
                continue
            if suffix_of(path) in MEDIA_SUFFIXES:
                _check_utf8(path, url)
                yield path, FileFacts.of(info)
                continue
            contents.add(path)
            if path.rpartition("/")[2] in METADATA_NAMES:
                metadata.append(File(path=path, facts=FileFacts.of(info)))

    files = Files.of(media_files())
    outside = links.outside if links else 0
    subject, verbs = (
        (f"{outside} links", "lead out of it and are") if outside != 1 else ("1 link", "leads out of it and is")
    )
    note = f"{subject} below '{canonical(url)}' {verbs} passed over"
    if not files:
        raise ConfigError(
            f"no videos or images below '{canonical(url)}'{contents.hint(url)}{f'; {note}' if outside else ''}"
        )
    return files, metadata, (note,) if outside else ()


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

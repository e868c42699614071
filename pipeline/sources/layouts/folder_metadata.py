"""Captions and columns of a folder's files from one file beside them.

Two layouts are read: VideoFolder and ImageFolder of Hugging Face's datasets (``metadata.csv``, ``.jsonl`` or
``.parquet`` with a column ``file_name``), and the lists of finetrainers (``videos.txt`` and ``prompts.txt``, which have
a line per video). Paths in them start at the folder of the table, and a media file belongs to the nearest table above.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.file_table import File, Files
from pipeline.sources.item import MEDIA_SUFFIXES
from pipeline.sources.layouts.captions import caption_column
from pipeline.sources.manifest import rows, survey
from pipeline.sources.manifest.records import NoRows
from pipeline.sources.manifest.text_rows import finite_values
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.sources.sidecars import NAN_TO_NULL
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.urls import FileFacts, canonical, suffix_of

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of tables; the first one in a folder is read."""
VIDEO_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
CAPTION_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
NAMES = frozenset((*TABLES, *VIDEO_LISTS, *CAPTION_LISTS))
"""Names of the files that a listing of a folder keeps for this module."""
FILE_NAME = "file_name"
ROWS_AT_ONCE = 65_536
"""Number of rows of a table held as Python objects at a time."""


class NotMetadata(ConfigError):
    """A file has the name of a table, but is something else. The folder is then read without it."""


@dataclass(frozen=True, slots=True)
class MetadataTable:
    """A table of one folder: a file, or a list of videos and a list of captions."""

    folder: str
    """Folder of the table below the source, with a slash at the end; empty for the source itself."""
    files: tuple[File, ...]

    def __str__(self) -> str:
        return " and ".join(file.path for file in self.files)


def find_tables(files: Iterable[File]) -> list[MetadataTable]:
    """The tables among files with the names of this module, at most one per folder."""
    by_folder: dict[str, dict[str, File]] = {}
    for file in files:
        folder, slash, name = file.path.rpartition("/")
        by_folder.setdefault(folder + slash, {})[name] = file
    tables = []
    for folder, named in by_folder.items():
        table = [named[name] for name in TABLES if name in named]
        lists = [[named[name] for name in names if name in named] for names in (VIDEO_LISTS, CAPTION_LISTS)]
        if table:
            tables.append(MetadataTable(folder, (table[0],)))
        elif all(lists):
            tables.append(MetadataTable(folder, (lists[0][0], lists[1][0])))
    return tables


def tables_of(files: Files, tables: Iterable[MetadataTable]) -> list[MetadataTable]:
    """The tables that ``files`` belong to."""
    by_folder = {table.folder: table for table in tables}
    if not by_folder:
        return []
    nearest = (_nearest(folder, by_folder) for folder in {file.path.rpartition("/")[0] for file in files})
    return sorted({table for table in nearest if table is not None}, key=lambda table: table.folder)


def encode_tables(tables: Iterable[MetadataTable]) -> str:
    """The tables as text for ``Source.header`` and ``Unit.header``; empty if there are none."""
    values = {table.folder: [[f.path, f.facts.size, f.facts.etag] for f in table.files] for table in tables}
    return json.dumps(values) if values else ""


def decode_tables(text: str) -> list[MetadataTable]:
    """The tables that ``encode_tables`` wrote."""
    return [
        MetadataTable(
            folder, tuple(File(path=path, facts=FileFacts(size=size, etag=etag)) for path, size, etag in files)
        )
        for folder, files in json.loads(text or "{}").items()
    ]


def check_tables_as_planned(url: str, tables: Iterable[MetadataTable], headers: Iterable[str]) -> None:
    """Raise SourceChanged if a file of a planned table has changed. ``headers``: those of the planned units."""
    now = {file.path: file.facts for table in tables for file in table.files}
    for header in set(headers):
        for file in (file for table in decode_tables(header) for file in table.files):
            if now.get(file.path) != file.facts:
                raise SourceChanged.between(f"{canonical(url)}/{file.path}", file.facts, now.get(file.path))


class FolderMetadata:
    """The rows of a folder's tables, looked up by the path of a media file."""

    def __init__(self, url: str, tables: Iterable[MetadataTable], recipe: Recipe) -> None:
        self._url = url
        self._tables = {table.folder: table for table in tables}
        self._recipe = recipe

    def columns(self) -> pa.Schema:
        """User columns of all tables. ConfigError if two tables give one column types that do not go together."""
        schemas = []
        for table in self._tables.values():
            schema = read_table(self._url, table).schema
            dropped = {FILE_NAME, caption_column(schema.names, self._recipe, f"{self._url}/{table}")}
            schemas.append(pa.schema([field for field in schema if field.name not in dropped]))
        try:
            return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
        except pa.ArrowTypeError as error:
            raise ConfigError(
                f"the metadata files below '{canonical(self._url)}' give one column different types: {error}"
            ) from None

    def rows(self, files: Iterable[File]) -> Iterator[tuple[str | list[str] | None, dict[str, Any], str | None]]:
        """Yield the caption, the user columns and the note of every file, in order.

        A file without a row has none of them. SourceChanged if a table is not as planned.

        Shapes: N files, of which the k-th group of files that follow one another share a table of P rows; ``index`` has
        an element per file of the group.
        Invariant: ``index[i]`` is the row of file ``i``, or null if there is none; taking a null index gives null.
        Example: files a, b, c and the table c, a: index = 1, null, 0.
        """
        for table, group in itertools.groupby(files, lambda file: _nearest(file.path.rpartition("/")[0], self._tables)):
            paths = [file.path for file in group]
            if table is None:
                yield from ((None, {}, None) for _ in paths)
                continue
            content = read_table(self._url, table)
            is_parquet = table.files[0].path.endswith(".parquet")
            caption = caption_column(content.schema.names, self._recipe, f"{self._url}/{table}")
            names = pa.array([path.removeprefix(table.folder) for path in paths])
            index = pc.index_in(names, value_set=content[FILE_NAME])
            for row in content.drop_columns([FILE_NAME]).take(index).to_pylist():
                text = row.pop(caption, None) if caption else None
                meta = {f"meta_{name}": value for name, value in row.items()}
                meta, has_infinite = (meta, False) if is_parquet else finite_values(meta)
                yield text, meta, NAN_TO_NULL if has_infinite else None


def usable_tables(
    url: str, tables: Iterable[MetadataTable], files: Files
) -> tuple[tuple[MetadataTable, ...], tuple[str, ...]]:
    """The tables that can be used, and notes about what of the tables is not used.

    files: the media files of the folder.
    """
    usable, notes = [], []
    paths = pc.struct_field(files.rows, "path")
    for table in tables:
        try:
            names = read_table(url, table)[FILE_NAME]
        except NotMetadata as error:
            notes.append(str(error))
            continue
        usable.append(table)
        missing = names.filter(
            pc.invert(pc.is_in(pc.binary_join_element_wise(table.folder, names, ""), value_set=paths))
        )
        if len(missing):
            example = missing[0].as_py()
            notes.append(
                f"{len(missing)} of {len(names)} rows of {table} {'names' if len(missing) == 1 else 'name'} no video or "
                f"image of the folder, for example '{example}'"
            )
        if repeated := len(names) - pc.count_distinct(names, mode="all").as_py():
            verbs = ("names", "is") if repeated == 1 else ("name", "are")
            notes.append(
                f"{repeated} of {len(names)} rows of {table} {verbs[0]} a file that an earlier row names, and {verbs[1]} "
                "not used"
            )
    return tuple(usable), tuple(notes)


def tables_beside(url: str) -> list[MetadataTable]:
    """The table that lies directly in a folder, if there is one. Asks the store for each name."""

    def facts(name: str) -> FileFacts | None:
        try:
            return file_facts(f"{url.rstrip('/')}/{name}")
        except FileNotFoundError:
            return None

    named = zip(sorted(NAMES), map_concurrently(facts, sorted(NAMES)), strict=True)
    return find_tables(File(path=name, facts=found) for name, found in named if found is not None)


@lru_cache(maxsize=8)
def read_table(url: str, table: MetadataTable) -> pa.Table:
    """All rows of a table. The column ``file_name`` holds normalized paths relative to the table's folder.

    NotMetadata if it has no such column, ConfigError if two lists differ in length, SourceChanged if a file is not as
    planned.
    """
    urls = [f"{url.rstrip('/')}/{file.path}" for file in table.files]
    for location, file in zip(urls, table.files, strict=True):
        try:
            facts = file_facts(location)
        except FileNotFoundError:
            raise SourceChanged.between(canonical(location), file.facts, None) from None
        if facts != file.facts:
            raise SourceChanged.between(canonical(location), file.facts, facts)
    if len(urls) == 2:
        return _read_lists(*urls)
    (location,) = urls
    try:
        surveyed = survey(location, ROWS_AT_ONCE)
    except NoRows:
        raise NotMetadata(f"{canonical(location)} is not used: it has no rows") from None
    parts = (rows(location, part, surveyed.header, surveyed.schema, facts.size) for part in surveyed.slices)
    batches = [pa.Table.from_pylist(list(part), surveyed.schema) for part in parts]
    content = pa.concat_tables([surveyed.schema.empty_table(), *batches])
    index = content.schema.names.index(_file_name_column(content.schema.names, location))
    names = pa.array([None if name is None else posixpath.normpath(str(name)) for name in content[index].to_pylist()])
    return content.set_column(index, FILE_NAME, names.cast(pa.string()))


def _file_name_column(names: list[str], location: str) -> str:
    """The column with the files' names: ``file_name``, or the only one that ends in ``_file_name``."""
    matches = [name for name in names if name.casefold() == FILE_NAME]
    matches = matches or [name for name in names if name.casefold().endswith(f"_{FILE_NAME}")]
    if len(matches) != 1:
        raise NotMetadata(
            f"{canonical(location)} is not used: it has {'several columns' if matches else 'no column'} named "
            f"{FILE_NAME} among {names}; to use it, give the file itself as the source, with --path-column"
        )
    return matches[0]


def _read_lists(videos_url: str, captions_url: str) -> pa.Table:
    """The table of two text files with a line per video. ConfigError if they differ in length or are not UTF-8."""
    columns = []
    for url in (videos_url, captions_url):
        try:
            text = read_whole(url, 0).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"'{canonical(url)}' is not UTF-8") from None
        columns.append([line.strip() for line in text.strip("\r\n").split("\n")])
    names, captions = columns
    if not any(suffix_of(name) in MEDIA_SUFFIXES for name in names):
        raise NotMetadata(f"{canonical(videos_url)} is not used: it does not list videos or images")
    if len(names) != len(captions):
        raise ConfigError(
            f"'{canonical(videos_url)}' has {len(names)} lines and '{canonical(captions_url)}' has {len(captions)}; "
            "they need a line per video, in the same order"
        )
    return pa.table({FILE_NAME: [posixpath.normpath(name) for name in names], "caption": captions})


def _nearest(folder: str, tables: dict[str, MetadataTable]) -> MetadataTable | None:
    """The table in a folder or in the nearest folder above it."""
    while True:
        table = tables.get(f"{folder}/" if folder else "")
        if table is not None or not folder:
            return table
        folder = folder.rpartition("/")[0]

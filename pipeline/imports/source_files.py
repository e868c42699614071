"""Lists the files of a source, cuts them into units, and reads the samples of a unit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, Reject, Rejected, SourceChanged
from pipeline.imports.formats.fastvideo import count_rows, form_of_file, read_rows
from pipeline.imports.import_format import FileFormat, ImportFormat
from pipeline.imports.imported_sample import Form, ImportedSample, text_of
from pipeline.imports.registry import IMPORT_FORMATS
from pipeline.recipe import Recipe
from pipeline.sources.fetch import fetch
from pipeline.sources.file_table import File, Files
from pipeline.sources.item import Item, is_system_file
from pipeline.sources.retrying_file import existing_file_facts, is_folder, open_retrying, retry_call
from pipeline.sources.units import IMPORTED, NO_FACTS, Source, Unit, new_unit
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.listing import iter_files
from pipeline.storage.local.links import LinkPolicy
from pipeline.storage.urls import HTTP_SCHEMES, FileFacts, canonical, open_filesystem, scheme_of

FILES_AT_ONCE = 8
"""Files that are fetched at the same time."""
ID_COLUMN = "meta_id"
"""User column with the source's own name of a sample, where it has one."""
COLUMNS = pa.schema([(ID_COLUMN, pa.string())])
DAMAGED = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError)
"""Errors of Arrow for a damaged Parquet file."""

ReadItem = tuple[Item, ImportedSample | Reject]


def open_source(url: str, import_format: ImportFormat) -> tuple[Source, list[str]]:
    """Return the source with the files that hold samples, and notes. ConfigError if it has none."""
    if scheme_of(url) in HTTP_SCHEMES:
        raise ConfigError(
            f"'{canonical(url)}' is on a web server, whose files cannot be listed; give a folder or a store"
        )
    url = url.rstrip("/") or "/"
    if not is_folder(url):
        raise ConfigError(f"there is no folder at '{canonical(url)}'; expected one that {import_format.writer} wrote")
    fs, root = open_filesystem(url)
    links = LinkPolicy(root) if scheme_of(url) == "file" else None
    listed = iter_files(fs, root, partial(retry_call, url), links)
    found = import_format.choose(
        Files.of((path, FileFacts.of(info)) for path, info in listed if not is_system_file(path) and _is_utf8(path))
    )
    if not found.samples:
        raise ConfigError(
            f"no {import_format.suffix} files below '{canonical(url)}'; expected what {import_format.writer} wrote"
        )
    name = canonical(url)
    return Source(name=name, format=IMPORTED, url=url, files=found.samples, header=found.folder), found.notes


def plan_units(
    source: Source, planned: list[Unit], import_format: ImportFormat, recipe: Recipe, generation: int, captions: str
) -> list[Unit]:
    """Cut the files that are in no unit yet. SourceChanged if a planned file has changed.

    ``captions``: hash of the table with captions; empty without one.
    """
    known = Files.concat(unit.files for unit in planned)
    new, changed = source.files.changes_since(known)
    if changed:
        before, now = changed
        raise SourceChanged.between(f"{canonical(source.url)}/{now.path}", before.facts, now.facts)
    start = max((unit.stop or 0 for unit in planned), default=0)
    details = json.dumps({"format": import_format.name} | ({"captions": captions} if captions else {}))
    make = partial(new_unit, source, generation, details=details, header=source.header)
    units = []
    if isinstance(import_format, FileFormat):
        for first in range(0, len(new), recipe.unit_clips):
            files = new.slice(first, min(first + recipe.unit_clips, len(new)))
            units.append(make(start=start + first, stop=start + first + len(files), files=files))
        return units
    counts = map_concurrently(lambda file: _count_rows(f"{source.url}/{file.path}", file), list(new))
    for number, num_rows in enumerate(counts):
        for first in range(0, num_rows, recipe.unit_clips):
            stop = min(first + recipe.unit_clips, num_rows)
            span = {"row_start": first, "row_stop": stop, "files": new.slice(number, number + 1)}
            units.append(make(start=start + first, stop=start + stop, **span))
        start += num_rows
    return units


def form_said(source: Source) -> Form | None:
    """Return the form of the latents that the first readable file of rows says; None if it says nothing."""
    for file in itertools.islice(source.files, FILES_AT_ONCE):
        try:
            with open_retrying(f"{source.url}/{file.path}", file.facts.size) as opened:
                return form_of_file(opened)
        except DAMAGED:
            continue
    return None


def format_of(unit: Unit) -> ImportFormat:
    """The format of a unit."""
    return IMPORT_FORMATS[json.loads(unit.details)["format"]]


def planned_captions(unit: Unit) -> str:
    """The hash of the table with captions with which a unit was planned; empty if there was none."""
    return str(json.loads(unit.details).get("captions", ""))


def read_unit(unit: Unit, url: str, import_format: ImportFormat, recipe: Recipe) -> Generator[ReadItem, None, None]:
    """Yield every item of a unit in order, with its sample or with the reject of one that cannot be used.

    SourceChanged if a file is not as planned.
    """
    url = url.rstrip("/") or "/"
    if isinstance(import_format, FileFormat):
        return _read_files(unit, url, import_format, recipe)
    return _read_rows(unit, url, next(iter(unit.files)))


def _read_files(unit: Unit, url: str, import_format: FileFormat, recipe: Recipe) -> Generator[ReadItem, None, None]:
    def read(numbered: tuple[int, File]) -> ReadItem:
        ordinal, file = numbered
        location = f"{url}/{file.path}"
        key = file.path.removeprefix(unit.header).removesuffix(import_format.suffix)
        item = Item(ordinal=ordinal, key=key, uri=canonical(location), facts=file.facts, location=location)
        item.meta = dict.fromkeys(COLUMNS.names)
        try:
            with fetch(item, recipe) as opened:
                opened.seek(0)
                content = opened.read()
            return item, import_format.read(content or b"", file.path.rpartition("/")[2])
        except Rejected as rejected:
            return item, rejected.reject

    numbered = enumerate(unit.files, unit.start)
    while some := list(itertools.islice(numbered, FILES_AT_ONCE)):
        yield from map_concurrently(read, some)


def _read_rows(unit: Unit, url: str, file: File) -> Generator[ReadItem, None, None]:
    location = f"{url}/{file.path}"
    facts = existing_file_facts(location)
    if file.facts not in (NO_FACTS, facts):
        raise SourceChanged.between(canonical(location), file.facts, facts)

    def item_of(ordinal: int, key: str | None = None, id: str | None = None) -> Item:
        row = ordinal - unit.start + unit.row_start
        key = key or f"{file.path}#{row}"
        return Item(ordinal=ordinal, key=key, uri=canonical(location), facts=facts, meta={ID_COLUMN: id})

    ordinal = unit.start
    try:
        with open_retrying(location, facts.size) as opened:
            for sample in read_rows(opened, unit.row_start, unit.row_stop):
                if isinstance(sample, Reject):
                    yield item_of(ordinal), sample
                else:
                    yield item_of(ordinal, sample.key, sample.id), sample
                ordinal += 1
        problem: Any = "it ends early"
    except DAMAGED as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0][:200]
    reject = Reject("import", "damaged_file", f"the Parquet file cannot be read: {text_of(problem)}")
    for rest in range(ordinal, unit.start + unit.row_stop - unit.row_start):
        yield item_of(rest), reject


def _count_rows(location: str, file: File) -> int:
    """Return the number of rows of a file; 1 for one that cannot be read, which becomes a reject."""
    try:
        with open_retrying(location, file.facts.size) as opened:
            return count_rows(opened)
    except DAMAGED:
        return 1


def _is_utf8(path: str) -> bool:
    if text_of(path) == path:
        return True
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    raise ConfigError(f"a file of the source has a name that is not UTF-8: '{shown}'; rename it")

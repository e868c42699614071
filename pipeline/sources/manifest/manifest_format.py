"""Manifest sources: Parquet, CSV and JSON files with a row per video.

Planning surveys a manifest once. Units are ranges of rows, which encoders read without the rows before them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import Reject
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.manifest.captions import is_binary, is_list, named_caption_columns
from pipeline.sources.manifest.columns import (
    OTHER_PATH_COLUMNS,
    PATH_COLUMNS,
    Columns,
    choose_columns,
)
from pipeline.sources.manifest.layout import arrow_errors, known_layout, layout_of
from pipeline.sources.manifest.parquet_pages import ManifestFile, UnboundedColumn
from pipeline.sources.manifest.parquet_rows import check_text, column_tables, column_values
from pipeline.sources.manifest.ranges import SpelledLists, count_ranges, range_names
from pipeline.sources.manifest.records import Slice
from pipeline.sources.manifest.repeats import MAX_ROWS, Repeats
from pipeline.sources.manifest.row_items import range_cells, row_items
from pipeline.sources.manifest.survey import SAMPLE_ROWS, Survey, row_ends, rows, survey
from pipeline.sources.retrying_file import open_retrying
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.sources.url_policy import key_of
from pipeline.storage.urls import canonical


class ManifestFormat(SourceFormat):
    """A Parquet, CSV, TSV, JSONL or JSON file. A row names or holds a video, with its captions, ranges and user columns."""

    name = "manifest"
    suffixes = frozenset({"parquet", "csv", "tsv", "jsonl", "ndjson", "json"})

    def recognizes(self, url: str) -> bool:
        """Return whether the name ends like that of a manifest, perhaps with ``.gz``."""
        return layout_of(url) is not None

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut a manifest that is not planned yet into ranges of rows."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        repeats = Repeats([recipe.path_column] if recipe.path_column else _usual_paths())
        lists = SpelledLists()

        def watch(table: pa.Table) -> None:
            repeats.add(table)
            lists.add(
                table.select([name for name in table.schema.names if name.strip().lower() in range_names(recipe)])
            )

        surveyed = survey(source.url, recipe.unit_clips, watch)
        columns = _columns(surveyed, source, recipe)
        slices = surveyed.slices
        if _may_name_several(columns, lists, source):
            slices = _slices_of_items(source, surveyed, columns, recipe)
        details = columns.to_text()
        return NewUnits(
            units=[_unit(source, generation, part, surveyed.header, details) for part in slices],
            columns=_user_columns(columns),
            any_column_can_be_text=known_layout(source.url).separator is not None,
            notes=[
                *_found_ranges(columns, recipe, source),
                *_left_out(surveyed, columns, source),
                *_repeated(repeats, surveyed, columns, source),
            ],
        )

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield the items of the unit's rows."""
        check_file_as_planned(unit, url)
        found = Columns.from_text(unit.details)
        planned = {field.name.removeprefix("meta_"): field.type for field in columns}
        types = pa.schema(
            [f if f.name in found.consumed else pa.field(f.name, planned.get(f.name, f.type)) for f in found.types]
        )
        start, stop = unit.row_start, unit.row_stop
        part = Slice(start=start, stop=stop, byte_start=unit.byte_start, byte_stop=unit.byte_stop)
        ordinal = unit.ordinals.start
        try:
            for number, row in enumerate(rows(url, part, unit.header, types, unit.size), start):
                for item in row_items(row, number, ordinal, found, set(planned), unit, url, recipe):
                    yield item
                    ordinal += 1
        except UnboundedColumn as error:  # a column of more bytes than planning looks through
            reject = Reject("read", "unbounded_column", str(error)[:300])
            for rest in range(ordinal, unit.ordinals.stop):
                key = f"item-{rest:08d}"
                yield Item(ordinal=rest, key=key, uri=f"{canonical(url)}#{key}", fault=reject, trusted=False)

    def num_items(self, unit: Unit) -> int:
        """Number of items of the unit's rows."""
        return len(unit.ordinals)


def _usual_paths() -> list[str]:
    return [name for usual in (PATH_COLUMNS, OTHER_PATH_COLUMNS) for name in usual]


def _unit(source: Source, generation: int, part: Slice, header: str, details: str) -> Unit:
    return new_unit(
        source,
        generation,
        start=part.ordinals.start,
        stop=part.ordinals.stop,
        byte_start=part.byte_start,
        byte_stop=part.byte_stop,
        header=header,
        row_start=part.start,
        row_stop=part.stop,
        details=details,
    )


def _columns(surveyed: Survey, source: Source, recipe: Recipe) -> Columns:
    """The columns that are read, with the types to read them with."""

    def first_values(name: str) -> Iterator[Any]:
        if surveyed.sample is not None:
            return iter(surveyed.sample[name].to_pylist())
        return _first_values(source, name)

    columns = choose_columns(surveyed.schema, first_values, recipe, source.url)
    layout = known_layout(source.url)
    kept = [field for field in surveyed.schema if field.name not in surveyed.heavy or field.name in columns.needed]
    types = [
        pa.field(field.name, pa.string())
        if field.name in columns.needed and layout.reads_as_text(field.type)
        else field
        for field in kept
    ]
    if layout.name == "parquet":
        _check_bytes(columns, source)
    return dataclasses.replace(columns, types=pa.schema(types))


def _first_values(source: Source, name: str) -> Iterator[Any]:
    """Yield some values of a column of a Parquet file."""
    with arrow_errors(source.url), open_retrying(source.url, source.facts.size) as f:
        for _, value in zip(range(SAMPLE_ROWS), column_values(ManifestFile(f), name, source.url), strict=False):
            yield value
            if isinstance(value, dict) or (isinstance(value, bytes) and len(value) > SAMPLE_ROWS):
                return  # a file; one is enough


def _check_bytes(columns: Columns, source: Source) -> None:
    """ConfigError if a column of bytes that should be text is not UTF-8."""
    for name in columns.needed & set(columns.types.names):
        if is_binary(columns.types.field(name).type) and not (columns.has_content and name == columns.path):
            with arrow_errors(source.url), open_retrying(source.url, source.facts.size) as f:
                check_text(ManifestFile(f), name, source.url)


def _user_columns(columns: Columns) -> pa.Schema:
    """The columns of the samples' metadata that come from the manifest."""
    fields = [field for field in columns.types if field.name not in columns.consumed]
    if columns.caption is not None and columns.caption in columns.types.names:
        fields += named_caption_columns(columns.caption, columns.types.field(columns.caption).type)
    return pa.schema(fields)


def _may_name_several(columns: Columns, lists: SpelledLists, source: Source) -> bool:
    """Return whether a row may name several ranges: in one column of pairs, or in two of lists, perhaps spelled as text.

    lists: what was seen of a manifest of text.
    """
    if not columns.ranges:
        return False
    if len(columns.ranges) == 1 or any(is_list(columns.types.field(name).type) for name in columns.ranges):
        return True
    texts = [name for name in columns.ranges if not pa.types.is_primitive(columns.types.field(name).type)]
    if known_layout(source.url).name == "parquet" and texts:
        with arrow_errors(source.url), open_retrying(source.url, source.facts.size) as f:
            for table in column_tables(ManifestFile(f), texts, source.url):
                lists.add(table)
    return bool(lists.names & set(columns.ranges))


def _slices_of_items(source: Source, surveyed: Survey, columns: Columns, recipe: Recipe) -> list[Slice]:
    """Slices of whole rows with about ``unit_clips`` items each, for rows that name several ranges."""
    url, size_bytes = source.url, source.facts.size
    types = pa.schema([columns.types.field(name) for name in columns.ranges])
    is_text = known_layout(url).name != "parquet"
    if is_text:  # the reader needs the types of all columns, since it reads all of them
        types = columns.types
    merged: list[Slice] = []
    first, first_byte, count, ordinal = 0, surveyed.slices[0].byte_start if is_text else 0, 0, 0
    for part in surveyed.slices:
        ends = row_ends(url, part, size_bytes) if is_text else [0] * (part.stop - part.start)
        found = rows(url, part, surveyed.header, types, size_bytes)
        for number, (row, end) in enumerate(zip(found, ends, strict=True), part.start + 1):
            count += count_ranges(range_cells(row, columns), recipe.range_unit)
            if count >= recipe.unit_clips or number == surveyed.slices[-1].stop:
                items = range(ordinal, ordinal + count)
                merged.append(Slice(start=first, stop=number, byte_start=first_byte, byte_stop=end, items=items))
                first, first_byte, count, ordinal = number, end, 0, ordinal + count
    return merged


def _found_ranges(columns: Columns, recipe: Recipe, source: Source) -> list[str]:
    """A note if ranges were found by the names of columns alone."""
    if not columns.ranges or recipe.range_columns:
        return []
    names = " and ".join(f"'{name}'" for name in columns.ranges)
    return [
        f"manifest '{canonical(source.url)}': each row is a clip of its video by {names}, in {recipe.range_unit}; "
        "--range-columns chooses other columns, or none"
    ]


def _left_out(surveyed: Survey, columns: Columns, source: Source) -> list[str]:
    """A note about columns of files, which are not copied into every sample."""
    names = [name for name in surveyed.heavy if name not in columns.types.names]
    if not names:
        return []
    return [f"manifest '{canonical(source.url)}': left out the columns with files in them: {', '.join(names)}"]


def _repeated(repeats: Repeats, surveyed: Survey, columns: Columns, source: Source) -> list[str]:
    """A note if rows without ranges name the same video: they would all become the same clips."""
    if columns.ranges or columns.has_content or columns.path not in columns.types.names or not surveyed.slices:
        return []
    if known_layout(source.url).name == "parquet":
        repeats = Repeats([columns.path])
        with arrow_errors(source.url), open_retrying(source.url, source.facts.size) as f:
            read = 0
            for table in column_tables(ManifestFile(f), [columns.path], source.url):
                repeats.add(table)
                read += table.num_rows
                if read >= MAX_ROWS:
                    break
    found = repeats.first(columns.path)
    if found is None:
        return []
    one, other, count = found
    part = next(part for part in surveyed.slices if other < part.stop)
    types = (
        pa.schema([columns.types.field(columns.path)]) if known_layout(source.url).name == "parquet" else columns.types
    )
    again = itertools.islice(
        rows(source.url, part, surveyed.header, types, source.facts.size), other - part.start, None
    )
    subject = "1 row names" if count == 1 else f"{count} rows name"
    key = key_of(next(again)[columns.path], source.url)
    return [
        f"manifest '{canonical(source.url)}': {subject} a video that an earlier row names, for example row "
        f"{other + 1} that of row {one + 1}, '{key[:200]}'; no column has ranges, so such rows become the same clips: "
        "name the columns with --range-columns"
    ]

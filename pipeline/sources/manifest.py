"""Manifest sources: Parquet, CSV and JSONL files with a row per item.

Planning surveys a manifest once. Units are ranges of rows, which encoders read without the rows before them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, Reject, Rejected, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, open_retrying
from pipeline.sources.sidecars import CAPTION_COLUMNS
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.sources.url_policy import key_of, location_of
from pipeline.storage.parquet import arrow_file
from pipeline.storage.urls import canonical, suffix_of

PATH_COLUMNS = ("path", "url", "uri", "video", "file")
BLOCK_BYTES = 16 << 20
BATCH_ROWS = 8192
"""Number of rows of a Parquet manifest held in memory at a time."""
PARSED_BYTES = 32 << 20
"""Least number of bytes of a text manifest that Arrow infers column types from at a time."""


class ManifestFormat(SourceFormat):
    """A Parquet, CSV or JSONL file. An item per row: a URL or path, perhaps a caption, and user columns."""

    name = "manifest"
    suffixes = frozenset({"parquet", "csv", "jsonl", "ndjson"})

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut a manifest that is not planned yet into ranges of rows."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        surveyed = survey(source.url, recipe.unit_clips)
        path_name, caption_name = _path_and_caption(surveyed.schema.names, recipe, source.url)
        return NewUnits(
            units=[
                new_unit(source, generation, **dataclasses.asdict(part), header=surveyed.header)
                for part in surveyed.slices
            ],
            columns=pa.schema([field for field in surveyed.schema if field.name not in (path_name, caption_name)]),
        )

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per row of the unit."""
        check_file_as_planned(unit, url)
        types = pa.schema([(f.name.removeprefix("meta_"), f.type) for f in columns if f.name.startswith("meta_")])
        first, stop = unit.ordinals.start, unit.ordinals.stop
        part = Slice(start=first, stop=stop, byte_start=unit.byte_start, byte_stop=unit.byte_stop)
        for ordinal, row in enumerate(rows(url, part, unit.header, types, unit.size), first):
            yield _item(ordinal, row, url, recipe)

    def num_items(self, unit: Unit) -> int:
        """Number of rows in the unit."""
        return len(unit.ordinals)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A range of rows, and where its text lies in a CSV or JSONL file."""

    start: int
    stop: int
    byte_start: int = 0
    byte_stop: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Facts of a manifest that planning needs."""

    schema: pa.Schema
    slices: list[Slice]
    header: str = ""
    """First line of a CSV file."""


def survey(url: str, rows_per_slice: int) -> Survey:
    """Find the columns with their types, and cut the manifest into slices. Reads text files twice, a block at a time.

    ConfigError if the file cannot be read as what its suffix says.
    """
    suffix = _suffix(url)
    with _arrow_errors(url), open_retrying(url, file_facts(url).size) as f:
        if suffix == "parquet":
            parquet = pq.ParquetFile(f, pre_buffer=False)
            num_rows = parquet.metadata.num_rows
            starts = range(0, num_rows, rows_per_slice)
            slices = [Slice(start=s, stop=min(s + rows_per_slice, num_rows)) for s in starts]
            return Survey(schema=parquet.schema_arrow, slices=slices)
        header = f.readline() if suffix == "csv" else b""
        if header.count(b'"') % 2:
            raise ConfigError(f"manifest '{canonical(url)}' has a line break inside a column name")
        slices = _cut_text(f, len(header), rows_per_slice, quoted=suffix == "csv")
        return Survey(schema=_text_schema(url, f, header, slices), slices=slices, header=header.decode("utf-8-sig"))


def rows(url: str, part: Slice, header: str, schema: pa.Schema, size_bytes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a slice in order, with the types that planning found. ConfigError if they cannot be read."""
    suffix = _suffix(url)
    with _arrow_errors(url, part.start), open_retrying(url, size_bytes) as f:
        if suffix == "parquet":
            yield from _parquet_rows(pq.ParquetFile(f, pre_buffer=False), part)
            return
        f.seek(part.byte_start)
        data = header.encode() + f.read(part.byte_stop - part.byte_start)
        yield from _parse(data, suffix, schema).to_pylist()


@contextlib.contextmanager
def _arrow_errors(url: str, first_row: int = 0) -> Iterator[None]:
    """Replace Arrow's errors, which quote values, by a ConfigError that names the manifest and the row."""
    try:
        yield
    except FileNotFoundError:
        raise SourceChanged(f"manifest '{canonical(url)}' is gone") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        row = re.search(r"row #?(\d+)", str(error), re.IGNORECASE)
        where = f" from row {first_row + int(row[1])} on" if row else ""
        raise ConfigError(f"manifest '{canonical(url)}' cannot be read as {_suffix(url)}{where}") from None


def _path_and_caption(names: list[str], recipe: Recipe, url: str) -> tuple[str, str | None]:
    """The columns with the rows' paths and captions; None if there are no captions."""
    path = _choose_column(names, recipe.path_column, PATH_COLUMNS, "path", url, required=True)
    caption = _choose_column(names, recipe.caption_column, CAPTION_COLUMNS, "caption", url, required=False)
    assert path is not None
    return path, caption


def _choose_column(
    names: list[str], given: str | None, usual: tuple[str, ...], role: str, url: str, *, required: bool
) -> str | None:
    """The given column, or the only one with a usual name. ConfigError if the choice is not clear."""
    matches = [name for name in ([given] if given else usual) if name in names]
    if len(matches) > 1 or (not matches and (given or required)):
        raise ConfigError(
            f"manifest '{canonical(url)}': expected one {role} column named {given or ' or '.join(usual)}, "
            f"found {matches or 'none'} among {names}; say which with --{role}-column"
        )
    return matches[0] if matches else None


def _item(ordinal: int, row: dict[str, Any], url: str, recipe: Recipe) -> Item:
    """The item of a row; with a fault if the row may not point to what it points to."""
    path_name, caption_name = _path_and_caption(list(row), recipe, url)
    target = row.pop(path_name)
    caption = row.pop(caption_name) if caption_name else None
    item = Item(ordinal=ordinal, key=key_of(target, url), uri="", trusted=False)
    item.caption = None if caption is None else str(caption)
    item.meta = {f"meta_{name}": value for name, value in row.items()}
    try:
        item.location = location_of(target, url, recipe.root)
        item.uri = canonical(item.location)
    except Rejected as rejected:
        item.fault = rejected.reject
    except ValueError:
        item.fault = Reject("fetch", "forbidden_url", "it is not a URL that can be read")
    return item


def _suffix(url: str) -> str:
    return suffix_of(canonical(url))


def _text_schema(url: str, file: IO[bytes], header: bytes, slices: list[Slice]) -> pa.Schema:
    """Types that hold every row of a CSV or JSONL file, from blocks of slices.

    Types of one column that differ between blocks are widened. In CSV the column becomes text if they cannot be; in
    JSONL only if one of the blocks has text that another takes for a time.
    """
    types: dict[str, pa.DataType] = {}
    start, first_row = len(header), 0
    for number, part in enumerate(slices, 1):
        if part.byte_stop - start < PARSED_BYTES and number < len(slices):
            continue
        file.seek(start)
        with _arrow_errors(url, first_row):
            schema = _parse(header + file.read(part.byte_stop - start), _suffix(url), None).schema
        for column in schema:
            types[column.name] = _common_type(types.get(column.name, column.type), column, url)
        start, first_row = part.byte_stop, part.stop
    return pa.schema(list(types.items())) if slices else _parse(header, _suffix(url), None).schema


def _common_type(before: pa.DataType, column: pa.Field, url: str) -> pa.DataType:
    """The type that holds a column's values of earlier blocks and of this one. ConfigError if there is none."""
    types = [before, column.type]
    try:
        pair = [pa.schema([(column.name, type_)]) for type_ in types]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        if _suffix(url) == "csv" or (pa.string() in types and any(map(pa.types.is_timestamp, types))):
            return pa.string()
        raise ConfigError(
            f"manifest '{canonical(url)}': column '{column.name}' is {before} in some rows and {column.type} in others"
        ) from None


def _parse(content: bytes, suffix: str, schema: pa.Schema | None) -> pa.Table:
    """Whole lines of CSV, the header among them, or of JSONL. Types that ``schema`` lacks are inferred."""
    if suffix == "csv":
        return pa.csv.read_csv(
            arrow_file(content),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=schema, strings_can_be_null=True),
        )
    return pa.json.read_json(
        arrow_file(content),
        read_options=pa.json.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pa.json.ParseOptions(explicit_schema=schema, newlines_in_values=False),
    )


def _parquet_rows(parquet: pq.ParquetFile, part: Slice) -> Iterator[dict[str, Any]]:
    """Yield the rows of a slice, reading only the row groups that hold some of them.

    Shapes: ``stops[g]`` is the number of rows up to the end of row group ``g``; ``start`` is a batch's first row.
    Invariant: batches follow one another without a gap, so ``start`` grows by the rows of each batch.
    Example: groups of 3, 3 and 2 rows give stops 3, 6, 8; rows 4 to 7 are in groups 1 and 2, which start at row 3.
    """
    stops = list(itertools.accumulate(parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)))
    groups = range(bisect_right(stops, part.start), bisect_left(stops, part.stop) + 1)
    start = stops[groups[0] - 1] if groups[0] else 0
    # only this thread may hold the Python file: see storage/parquet.py
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=list(groups), use_threads=False):
        first, stop = max(part.start - start, 0), min(part.stop - start, batch.num_rows)
        if first < stop:
            yield from batch.slice(first, stop - first).to_pylist()
        start += batch.num_rows
        if start >= part.stop:
            return


def _cut_text(file: IO[bytes], offset: int, rows_per_slice: int, *, quoted: bool) -> list[Slice]:
    """Cut text into slices of whole records. If ``quoted``, a line break between quotes does not end a record.

    Shapes: ``data``, ``ends`` and ``parity`` have an element per byte of a block; ``positions`` one per record end.
    Invariant: ``cuts`` are the offsets where slices begin; ``count`` records end before ``offset``, and
    ``inside`` is 1 if an odd number of quotes come before it.
    Example: records of 2 bytes, 3 per slice: ends at 2, 4, 6, 8 give the cuts 0, 6 and, at the end of the file, 8.
    """
    cuts, count, inside = [offset], 0, 0
    last = b"\n"
    while block := file.read(BLOCK_BYTES):
        data = np.frombuffer(block, dtype=np.uint8)
        ends = data == ord("\n")
        if quoted:
            parity = np.bitwise_xor.accumulate((data == ord('"')).view(np.uint8)) ^ inside
            ends &= parity == 0
            inside = int(parity[-1])
        positions = np.flatnonzero(ends) + 1
        to_cut = rows_per_slice - 1 - count % rows_per_slice  # records of this block before the next cut
        cuts += [offset + int(position) for position in positions[to_cut::rows_per_slice]]
        count += len(positions)
        offset += len(block)
        last = block[-1:]
    if last != b"\n":
        count += 1
    if cuts[-1] != offset:
        cuts.append(offset)
    starts = range(0, count, rows_per_slice)
    return [
        Slice(start=s, stop=min(s + rows_per_slice, count), byte_start=a, byte_stop=b)
        for s, (a, b) in zip(starts, itertools.pairwise(cuts), strict=True)
    ]

"""Parquet, CSV and JSONL manifests: surveyed once when planned, read by row range afterwards."""

from __future__ import annotations

import contextlib
import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, Reject, Rejected, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import manifest as manifests
from pipeline.sources import url_policy as targets
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, open_retrying
from pipeline.sources.sidecars import CAPTION_COLUMNS
from pipeline.sources.units import Source, Unit, _check_unchanged
from pipeline.storage.parquet import arrow_file
from pipeline.storage.urls import canonical

SUFFIXES = frozenset({"parquet", "csv", "jsonl", "ndjson"})
PATH_COLUMNS = ("path", "url", "uri", "video", "file")
BLOCK_BYTES = 16 << 20
ROWS_AT_ONCE = 8192
"""Of a Parquet manifest, in memory."""
PARSED_BYTES = 32 << 20
"""Of text, at least, that Arrow sees at once while types are found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A run of rows, and where its text lies in a CSV or JSONL file."""

    start: int
    stop: int
    byte_start: int = 0
    byte_stop: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What planning needs to know of a manifest."""

    schema: pa.Schema
    slices: list[Slice]
    header: str = ""
    """First line of a CSV file."""


def survey(url: str, rows_per_slice: int) -> Survey:
    """Columns with their types, and the manifest cut into slices. Reads text manifests twice, a block at a time.

    ConfigError if it cannot be read as what its name says.
    """
    suffix = _suffix(url)
    with _named(url), open_retrying(url, file_facts(url).size) as f:
        if suffix == "parquet":
            parquet = pq.ParquetFile(f, pre_buffer=False)
            num_rows = parquet.metadata.num_rows
            starts = range(0, num_rows, rows_per_slice)
            slices = [Slice(start=s, stop=min(s + rows_per_slice, num_rows)) for s in starts]
            return Survey(schema=parquet.schema_arrow, slices=slices)
        header = f.readline() if suffix == "csv" else b""
        if header.count(b'"') % 2:
            raise ConfigError(f"manifest '{canonical(url)}' has a line break inside a column name")
        slices = _cut(f, len(header), rows_per_slice, quoted=suffix == "csv")
        return Survey(schema=_schema(url, f, header, slices), slices=slices, header=header.decode("utf-8-sig"))


def rows(url: str, part: Slice, header: str, schema: pa.Schema, size_bytes: int) -> Iterator[dict[str, Any]]:
    """The rows of a slice, in order, with the types that planning saw. ConfigError if they cannot be read."""
    suffix = _suffix(url)
    with _named(url, part.start), open_retrying(url, size_bytes) as f:
        if suffix == "parquet":
            yield from _parquet_rows(pq.ParquetFile(f, pre_buffer=False), part)
            return
        f.seek(part.byte_start)
        data = header.encode() + f.read(part.byte_stop - part.byte_start)
        yield from _parse(data, suffix, schema).to_pylist()


@contextlib.contextmanager
def _named(url: str, first_row: int = 0) -> Iterator[None]:
    """Name the manifest in what Arrow says of it, without the values that Arrow quotes."""
    try:
        yield
    except FileNotFoundError:
        raise SourceChanged(f"manifest '{canonical(url)}' is gone") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        row = re.search(r"row #?(\d+)", str(error), re.IGNORECASE)
        place = f" from row {first_row + int(row[1])} on" if row else ""
        raise ConfigError(f"manifest '{canonical(url)}' cannot be read as {_suffix(url)}{place}") from None


def path_column(columns: list[str], recipe: Recipe, url: str) -> str:
    """The column that says where a row's video is."""
    return _column(columns, recipe.path_column, PATH_COLUMNS, "path", url) or ""


def caption_column(columns: list[str], recipe: Recipe, url: str) -> str | None:
    """The column that holds the caption, if there is one."""
    return _column(columns, recipe.caption_column, CAPTION_COLUMNS, "caption", url)


def _column(columns: list[str], given: str | None, usual: tuple[str, ...], what: str, url: str) -> str | None:
    found = [name for name in ([given] if given else usual) if name in columns]
    if len(found) > 1 or (not found and (given or what == "path")):
        raise ConfigError(
            f"manifest '{canonical(url)}': expected one {what} column named {given or ' or '.join(usual)}, "
            f"found {found or 'none'} among {columns}; say which with --{what}-column"
        )
    return found[0] if found else None


def _suffix(url: str) -> str:
    return PurePosixPath(canonical(url)).suffix.lower().lstrip(".")


def _schema(url: str, file: IO[bytes], header: bytes, slices: list[Slice]) -> pa.Schema:
    """Types for every row of a CSV or JSONL file. A column whose blocks disagree is text, in JSONL only where it was."""
    types: dict[str, pa.DataType] = {}
    start, first_row = len(header), 0
    for number, part in enumerate(slices, 1):
        if part.byte_stop - start < PARSED_BYTES and number < len(slices):
            continue
        file.seek(start)
        with _named(url, first_row):
            found = _parse(header + file.read(part.byte_stop - start), _suffix(url), None).schema
        for column in found:
            types[column.name] = _common_type(types.get(column.name, column.type), column, url)
        start, first_row = part.byte_stop, part.stop
    return pa.schema(list(types.items())) if slices else _parse(header, _suffix(url), None).schema


def _common_type(before: pa.DataType, column: pa.Field, url: str) -> pa.DataType:
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
    stops = list(itertools.accumulate(parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)))
    groups = range(bisect_right(stops, part.start), bisect_left(stops, part.stop) + 1)
    start = stops[groups[0] - 1] if groups[0] else 0
    # one thread, this one: see tables.py
    for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), use_threads=False):
        first, stop = max(part.start - start, 0), min(part.stop - start, batch.num_rows)
        if first < stop:
            yield from batch.slice(first, stop - first).to_pylist()
        start += batch.num_rows
        if start >= part.stop:
            return


def _cut(file: Any, offset: int, rows_per_slice: int, *, quoted: bool) -> list[Slice]:
    """Slices of complete records. In CSV a line break between quotes is part of a value, so quotes are counted."""
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


def _manifest_items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    _check_unchanged(unit, url)
    types = pa.schema([(f.name.removeprefix("meta_"), f.type) for f in columns if f.name.startswith("meta_")])
    assert unit.stop is not None
    part = manifests.Slice(start=unit.start, stop=unit.stop, byte_start=unit.byte_start, byte_stop=unit.byte_stop)
    rows = manifests.rows(url, part, unit.header, types, unit.size)
    for ordinal, row in enumerate(rows, unit.start):
        path_column = manifests.path_column(list(row), recipe, url)
        caption_column = manifests.caption_column(list(row), recipe, url)
        target = row.pop(path_column)
        caption = row.pop(caption_column) if caption_column else None
        item = Item(ordinal=ordinal, key=targets.key_of(target, url), uri="", trusted=False)
        item.caption = None if caption is None else str(caption)
        item.meta = {f"meta_{name}": value for name, value in row.items()}
        try:
            item.location = targets.location_of(target, url)
            item.uri = canonical(item.location)
        except Rejected as rejected:
            item.fault = rejected.reject
        except ValueError:
            item.fault = Reject("fetch", "forbidden_url", "it is not a URL that can be read")
        yield item


def _add_columns(columns: dict[str, pa.DataType], schema: pa.Schema, recipe: Recipe, source: Source) -> None:
    """A manifest's own columns beside those of the other sources; ConfigError where two types clash."""
    taken = {
        manifests.path_column(schema.names, recipe, source.url),
        manifests.caption_column(schema.names, recipe, source.url),
    }
    for field in schema:
        if field.name in taken:
            continue
        name = f"meta_{field.name}"
        if columns.setdefault(name, field.type) != field.type:
            raise ConfigError(
                f"column '{field.name}' is {field.type} in {source.name} and {columns[name]} in another source; "
                "give both the same type"
            )

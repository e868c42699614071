"""Rows of CSV and JSONL text, and the types that hold them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from pipeline.errors import ConfigError
from pipeline.sources.manifest.layout import Layout, arrow_errors
from pipeline.sources.manifest.records import BLOCK_BYTES, Slice
from pipeline.storage.parquet import arrow_file
from pipeline.storage.urls import canonical

PARSED_BYTES = 32 << 20
"""Least number of bytes of a text manifest that Arrow infers column types from at a time."""
MAX_DEPTH = 16
"""Largest number of lists and objects inside one another. Arrow cannot read a plan with hundreds of them."""

TOO_LARGE = re.compile(rb"[eE]\+?[0-9]{3}")
"""Bytes that a line of JSON has if it holds a number with a large exponent."""
NOT_A_NUMBER = re.compile(r"[+-]?0[0-9]+$|[+-]?[0-9]{16,}$")
"""Texts of digits that a number does not give back: with leading zeros, or too long for a float."""


def text_schema(
    url: str, file: IO[bytes], header: bytes, slices: list[Slice], layout: Layout, watch: Callable[[pa.Table], None]
) -> pa.Schema:
    """Types that hold every row of a CSV or JSONL file, from blocks of slices. ``watch`` gets each block.

    Types of one column that differ between blocks are widened. In a table the column becomes text if they cannot be; in
    JSONL only if one of the blocks has text that another takes for a time.
    """
    types: dict[str, pa.DataType] = {}
    start, first_row = len(header), 0
    for number, part in enumerate(slices, 1):
        if part.byte_stop - start < PARSED_BYTES and number < len(slices):
            continue
        file.seek(start)
        with arrow_errors(url, first_row):
            table = parse(header, file.read(part.byte_stop - start), layout, None)
        for column in table.schema:
            types[column.name] = _common_type(types.get(column.name, column.type), column, url, layout)
        watch(table)
        start, first_row = part.byte_stop, part.stop
    return pa.schema(list(types.items()))


def parse(header: bytes, content: bytes, layout: Layout, schema: pa.Schema | None) -> pa.Table:
    """Whole lines of a table or of JSONL. Types are inferred if there is no schema."""
    if layout.separator is None:
        try:
            return _read_jsonl(content, schema)
        except pa.ArrowInvalid as error:
            if "too big to be stored in double" not in str(error):
                raise
        return _read_jsonl(_with_infinity(content), schema)
    table = _read_csv(header + content, layout, schema)
    if schema is None:
        table = _with_digits_kept(table, header + content, layout)
    return _with_empty_as_null(table)


def _read_jsonl(content: bytes, types: pa.Schema | None) -> pa.Table:
    return pa.json.read_json(
        arrow_file(content),
        read_options=pa.json.ReadOptions(block_size=max(BLOCK_BYTES, len(content))),
        parse_options=pa.json.ParseOptions(explicit_schema=types, newlines_in_values=False),
    )


def _with_infinity(content: bytes) -> bytes:
    """Lines of JSON with infinity for numbers such as 1e400, which Arrow refuses in JSON but not in CSV."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        if TOO_LARGE.search(line):
            with contextlib.suppress(ValueError, RecursionError):  # which Arrow then refuses with the row's number
                lines[number] = json.dumps(json.loads(line)).encode()
    return b"\n".join(lines)


def _read_csv(content: bytes, layout: Layout, types: pa.Schema | None, only: list[str] | None = None) -> pa.Table:
    """A table of text. Words like NA are null in columns of numbers, and themselves in columns of text."""
    options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False, include_columns=only)
    parsing = pa.csv.ParseOptions(newlines_in_values=True, delimiter=layout.separator)
    block_bytes = max(1 << 20, min(len(content), BLOCK_BYTES))
    for use_threads in (True, False):
        reading = pa.csv.ReadOptions(block_size=block_bytes, use_threads=use_threads)
        try:
            return pa.csv.read_csv(
                arrow_file(content), read_options=reading, parse_options=parsing, convert_options=options
            )
        except pa.ArrowInvalid:
            if not use_threads:  # only then does the error have the row's number
                raise
    raise AssertionError


def _with_digits_kept(table: pa.Table, content: bytes, layout: Layout) -> pa.Table:
    """The table with columns of numbers as text where a number would not give the digits back, like those of 007."""
    numbers = [c.name for c in table.schema if pa.types.is_integer(c.type) or pa.types.is_floating(c.type)]
    if not numbers or len(set(table.schema.names)) < len(table.schema.names):
        return table
    as_text = _read_csv(content, layout, pa.schema([(name, pa.string()) for name in numbers]), numbers)
    for name in numbers:
        pattern = NOT_A_NUMBER.pattern if pa.types.is_floating(table.schema.field(name).type) else r"[+-]?0[0-9]+$"
        if pc.any(pc.match_substring_regex(as_text[name], rf"^\s*(?:{pattern})")).as_py():
            table = table.set_column(table.schema.get_field_index(name), name, as_text[name])
    return table


def _with_empty_as_null(table: pa.Table) -> pa.Table:
    """The table with null for empty text."""
    for number, column in enumerate(table.schema):
        if pa.types.is_string(column.type):
            values = table.column(number)
            is_empty = pc.equal(values, "")
            if pc.any(is_empty).as_py():
                null = pa.scalar(None, pa.string())
                table = table.set_column(number, column.name, pc.if_else(is_empty, null, values))
    return table


def _common_type(before: pa.DataType, column: pa.Field, url: str, layout: Layout) -> pa.DataType:
    """The type that holds a column's values of earlier blocks and of this one. ConfigError if there is none."""
    if depth(column.type) > MAX_DEPTH:
        raise ConfigError(
            f"manifest '{canonical(url)}': column '{column.name}' has more than {MAX_DEPTH} lists or objects inside "
            "one another; write it as text"
        )
    types = [before, column.type]
    try:
        pair = [pa.schema([(column.name, type_)]) for type_ in types]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        if layout.separator or (pa.string() in types and any(map(pa.types.is_timestamp, types))):
            return pa.string()
        raise ConfigError(
            f"manifest '{canonical(url)}': column '{column.name}' is {before} in some rows and {column.type} in others"
        ) from None


def depth(type_: pa.DataType) -> int:
    """Number of lists and objects inside one another."""
    level = [type_]
    for number in range(MAX_DEPTH + 1):
        level = [t.field(n).type for t in level for n in range(t.num_fields)]
        if not level:
            return number
    return MAX_DEPTH + 1


def finite_values(value: Any) -> tuple[Any, bool]:
    """A value with None for numbers that are NaN or infinite, also in its lists and objects, and whether it has some.

    Numbers of text that are too large for a float, such as 1e400, are infinite.
    """
    match value:
        case float() if not math.isfinite(value):
            return None, True
        case dict():
            pairs = {name: finite_values(part) for name, part in value.items()}
            return {name: part for name, (part, _) in pairs.items()}, any(found for _, found in pairs.values())
        case list():
            parts = [finite_values(part) for part in value]
            return [part for part, _ in parts], any(found for _, found in parts)
    return value, False

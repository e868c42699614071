"""The items of a manifest's row: one, or one for each range that the row names."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from pipeline.errors import Reject
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.manifest.captions import texts_of
from pipeline.sources.manifest.columns import Columns
from pipeline.sources.manifest.layout import known_layout
from pipeline.sources.manifest.ranges import BadRange, Range, parse_ranges
from pipeline.sources.manifest.text_rows import finite_values
from pipeline.sources.sidecars import NAN_TO_NULL
from pipeline.sources.units import Unit
from pipeline.sources.url_policy import key_of, locate
from pipeline.storage.urls import canonical

MAX_KEY = 8192
"""Longest key in characters."""

Row = dict[str, Any]


def row_items(
    row: Row, number: int, first: int, columns: Columns, user_columns: set[str], unit: Unit, url: str, recipe: Recipe
) -> Iterator[Item]:
    """Yield the items of one row; with a fault if the row may not point to what it points to.

    number: the row's number from 0 on. first: ordinal of its first item. user_columns: names that become metadata.
    """
    ranges, fault = _ranges(row, columns, recipe)
    captions, caption_fault = _captions(row, columns, len(ranges), url)
    values = _user_values(row, columns)
    has_infinite = False
    if known_layout(url).name != "parquet":
        values, has_infinite = finite_values(values)
    meta = {f"meta_{name}": value for name, value in values.items() if name in user_columns}
    for index, (range_, texts) in enumerate(zip(ranges, captions, strict=True)):
        item = _item(row, number, first + index, columns, unit, url, recipe)
        item.fault = item.fault or fault or caption_fault
        item.range = range_
        item.caption = texts[0] if texts else None
        item.captions = texts if len(texts) > 1 else None
        item.meta = dict(meta)
        item.note = NAN_TO_NULL if has_infinite else None
        yield item


def _item(row: Row, number: int, ordinal: int, columns: Columns, unit: Unit, url: str, recipe: Recipe) -> Item:
    """The item without its caption, range and user columns."""
    if columns.has_content:
        value = row[columns.path]
        content, target = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return _content_item(content, target, number, ordinal, unit, url, recipe)
    else:
        target = _target(row, columns)
    item = Item(ordinal=ordinal, key=_short(key_of(target, url)), uri="", trusted=False)
    locate(item, target, url, recipe.root)
    return item


def _content_item(
    content: bytes, name: str | None, number: int, ordinal: int, unit: Unit, url: str, recipe: Recipe
) -> Item:
    """The item of a row that holds the video itself. Its key is the name beside it, or the row's number."""
    key = _short(name.rpartition("/")[2]) if name else f"row-{number:08d}"
    item = Item(ordinal=ordinal, key=key, uri=f"{canonical(url)}#{key}", facts=unit.facts)
    if len(content) > recipe.max_item_bytes:
        message = f"{len(content)} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
        item.fault = Reject("read", "too_large", message)
    else:
        item.content = content
    return item


def _target(row: Row, columns: Columns) -> str | None:
    """The path or URL of a row, perhaps made of several columns; None if one of them is empty."""
    if columns.path in row:
        return _as_text(row[columns.path])
    return _filled(columns.path, row)


def _filled(pattern: str, row: Row) -> str | None:
    """A pattern with the values of a row, such as ``{episode:06d}.mp4``; None if one is empty or does not fit its format."""
    parts = []
    for text, name, format_spec, _ in string.Formatter().parse(pattern):
        parts.append(text)
        if name is None:
            continue
        value = _as_text(row.get(name))
        if value is None:
            return None
        try:
            parts.append(format(int(value), format_spec) if format_spec else value)
        except ValueError:
            return None
    return "".join(parts)


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    return None if value is None or value == "" else str(value)


def _short(key: str) -> str:
    return key if len(key) <= MAX_KEY else key[:MAX_KEY]


def range_cells(row: Row, columns: Columns) -> list[Any]:
    """The cells of a row that name its ranges."""
    return [row.get(name) for name in columns.ranges]


def _ranges(row: Row, columns: Columns, recipe: Recipe) -> tuple[list[Range | None], Reject | None]:
    if not columns.ranges:
        return [None], None
    try:
        return parse_ranges(range_cells(row, columns), recipe.range_unit), None
    except BadRange as error:
        return [None], Reject("read", "bad_range", f"column {' and '.join(columns.ranges)}: {error}"[:300])


def _captions(row: Row, columns: Columns, num_ranges: int, url: str) -> tuple[list[list[str]], Reject | None]:
    """The captions of each range. A list with one caption per range is shared out; all others belong to every range."""
    if columns.caption is None:
        return [[]] * num_ranges, None
    value = _field(row, columns.caption)
    texts = texts_of(value, spelled_lists=known_layout(url).separator is not None)
    if num_ranges == 1 or len(texts) <= 1:
        return [texts] * num_ranges, None
    if len(texts) == num_ranges:
        return [[text] for text in texts], None
    message = f"the row has {num_ranges} ranges and {len(texts)} captions; expected one, or one for each range"
    return [[]] * num_ranges, Reject("read", "bad_range", message)


def _field(row: Row, name: str) -> Any:
    """A column, or a field of a column written with dots."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _user_values(row: Row, columns: Columns) -> Row:
    """The row without paths, captions and ranges, and with the texts of a caption that has names."""
    values = {name: value for name, value in row.items() if name not in columns.consumed}
    caption = row.get(columns.caption) if columns.caption else None
    if isinstance(caption, dict):
        values |= {f"{columns.caption}_{name}": value for name, value in caption.items()}
    return values

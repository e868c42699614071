"""Pieces of videos, as the cells of a manifest name them: times, frame numbers, pairs and lists of pairs."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.recipe import Recipe

Range = tuple[float, float | None]
"""Start and end; an end of None is the end of the video."""

PAIR_COLUMNS = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("start_s", "end_s"),
    ("start_sec", "end_sec"),
    ("start_timestamp", "end_timestamp"),
    ("start_timestep", "end_timestep"),
)
"""Names of two columns that hold the start and the end of a row's piece."""
FRAME_PAIR_COLUMNS = (("start_frame", "end_frame"), *PAIR_COLUMNS)
LIST_COLUMNS = ("timestamp", "timestamps", "cut", "cuts")
"""Names of a column that holds one pair or a list of pairs."""

MAX_TEXT = 1 << 20
"""Longest text in characters that is parsed as a list."""
MAX_RANGES = 100_000
"""Largest number of pieces that one row may name."""

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d*)?|\.\d+)")
_SEPARATOR = re.compile(r"\s*(?:-->|,|;|-|\s)\s*")


class BadRange(ValueError):
    """Cells that do not name a piece of a video. The text says why, without the row's number."""


def parse_ranges(cells: list[Any], unit: str) -> list[Range | None]:
    """The pieces that a row names: one cell with pairs, or two cells with starts and ends. None is the whole video.

    unit: ``seconds`` or ``frames``. BadRange if a cell is not a time, or an end is not after its start.
    """
    if all(cell is None or cell == "" for cell in cells):
        return [None]
    lists = [_as_list(cell) for cell in cells]
    if len(cells) == 2 and lists == [None, None]:
        return [_pair(cells[0], cells[1], unit)]
    pairs = _pairs(cells[0], unit) if len(cells) == 1 else _zipped(*lists, unit=unit)
    if not pairs:
        raise BadRange("the row has an empty list of ranges")
    if len(pairs) > MAX_RANGES:
        raise BadRange(f"the row names {len(pairs)} ranges; the limit is {MAX_RANGES}")
    return list(pairs)


def count_ranges(cells: list[Any], unit: str) -> int:
    """Number of items that a row becomes. A row with a bad range becomes one item, which is a reject."""
    try:
        return len(parse_ranges(cells, unit))
    except BadRange:
        return 1


def range_names(recipe: Recipe) -> set[str]:
    """Names that a column of ranges may have, in lower case."""
    names = {name for pair in FRAME_PAIR_COLUMNS for name in pair} | set(LIST_COLUMNS) | set(recipe.range_columns)
    return {name.lower() for name in names}


class SpelledLists:
    """Notices text columns in which a value looks like a list."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Look at more rows."""
        for name in set(table.schema.names) - self.names:
            column = table[name]
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if is_text and pc.any(pc.match_substring_regex(column, r"^\s*[\[(]")).as_py():
                self.names.add(name)


def holds_pairs(cell: Any) -> bool:
    """Return whether a cell of a column like ``timestamp`` names pieces, and not for example a date."""
    if isinstance(cell, str):
        return cell.strip().startswith(("[", "(", "{")) or len(_times_in(cell)) == 2
    return isinstance(cell, list | tuple | dict)


def is_date(cell: Any) -> bool:
    """Return whether a cell is a date, which is never a time in a video."""
    text = cell if isinstance(cell, str) else cell.isoformat() if hasattr(cell, "isoformat") else ""
    return bool(re.match(r"\s*\d{4}-\d\d-\d\d", text))


def text_list(text: str) -> list[Any] | None:
    """The list that a text spells in Python or JSON, as CSV files hold lists; None if it spells none."""
    text = text.strip()
    if not (text.startswith(("[", "(")) and text.endswith(("]", ")"))) or len(text) > MAX_TEXT:
        return None
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return list(value) if isinstance(value, list | tuple) else None
    return None


def _pairs(cell: Any, unit: str) -> list[Range]:
    """The pairs in one cell: a pair, a list of pairs, or a text that spells one of them."""
    if isinstance(cell, str):
        values = text_list(cell)
        if values is None:
            times = _times_in(cell)
            if len(times) != 2:
                raise BadRange(f"{_shown(cell)} is not a start and an end, or a list of them")
            values = list(times)
        return _pairs(values, unit)
    if isinstance(cell, dict):
        return [_pair_of_fields(cell, unit)]
    if not isinstance(cell, list | tuple):
        raise BadRange(f"{_shown(cell)} is not a start and an end, or a list of them")
    if len(cell) == 2 and not any(_is_pair(value) for value in cell):
        return [_pair(cell[0], cell[1], unit)]
    for value in cell:
        if not _is_pair(value):
            raise BadRange(f"{_shown(value)} is not a pair of a start and an end")
    return [pair for value in cell for pair in _pairs(value, unit)]


def _as_list(cell: Any) -> list[Any] | None:
    """The list in a cell, perhaps spelled as text; None if it holds none."""
    return text_list(cell) if isinstance(cell, str) else list(cell) if isinstance(cell, list | tuple) else None


def _zipped(starts: list[Any] | None, ends: list[Any] | None, *, unit: str) -> list[Range]:
    """The pairs of a list of starts and a list of ends."""
    if starts is None or ends is None or len(starts) != len(ends):
        counts = ["no list" if times is None else f"a list of {len(times)}" for times in (starts, ends)]
        raise BadRange(f"the row has {counts[0]} as starts and {counts[1]} as ends; expected lists of one length")
    return [_pair(start, end, unit) for start, end in zip(starts, ends, strict=True)]


def _is_pair(value: Any) -> bool:
    if isinstance(value, str):
        return len(_times_in(value)) == 2
    return isinstance(value, dict) or (isinstance(value, list | tuple) and len(value) == 2)


def _pair_of_fields(values: dict[str, Any], unit: str) -> Range:
    by_name = {name.lower(): value for name, value in values.items()}
    for start, end in FRAME_PAIR_COLUMNS if unit == "frames" else PAIR_COLUMNS:
        if start in by_name and end in by_name:
            return _pair(by_name[start], by_name[end], unit)
    raise BadRange(f"a range has the fields {sorted(values)}, not start and end")


def _pair(start: Any, end: Any, unit: str) -> Range:
    first = 0.0 if start is None or start == "" else _time(start, unit)
    last = None if end is None or end == "" else _time(end, unit)
    if last is not None and last <= first:
        raise BadRange(f"the range ends at {last:g}, which is not after its start at {first:g}")
    return first, last


def _time(value: Any, unit: str) -> float:
    """A time or a frame number, depending on ``unit``, from a number or from text like 12.5, 1:02.5 or 00:01:02.500."""
    if isinstance(value, bool):
        raise BadRange(f"{_shown(value)} is not a time")
    text = str(value).strip().removesuffix("s").rstrip()
    match = _CLOCK.fullmatch(text)
    if match and (unit == "seconds" or ":" not in text):
        hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in match.groups())
        time = 3600 * hours + 60 * minutes + seconds
    else:
        try:
            time = float(text)
        except ValueError:
            raise BadRange(f"{_shown(value)} is not {'a time' if unit == 'seconds' else 'a frame number'}") from None
    if not math.isfinite(time) or time < 0:
        raise BadRange(f"{_shown(value)} is not a time from 0 on")
    if unit == "frames" and time != int(time):
        raise BadRange(f"{_shown(value)} is not a frame number")
    return time


def _times_in(text: str) -> list[str]:
    """The two times in a text like ``0.5 - 2`` or ``00:01, 00:02``; empty if it is not of this kind."""
    parts = _SEPARATOR.split(text.strip())
    return parts if len(parts) == 2 and all(_CLOCK.fullmatch(part) for part in parts) else []


def _shown(value: Any) -> str:
    """The beginning of a cell for a message."""
    text = str(value)
    return f"'{text[:60]}{'...' if len(text) > 60 else ''}'"

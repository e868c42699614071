"""Requests to remove: samples by a filter or by id, or items by source, ordinal, key or URI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.output.edits.edits import MATCHED, SCHEMA, Edits

ID_DIGITS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A filter, ids or items; exactly one of them."""

    selection: str
    """The arguments as people wrote them."""
    reason: str
    where: str | None = None
    ids: tuple[str, ...] = ()
    items: tuple[dict[str, Any], ...] = ()
    """Values of some of the columns ``MATCHED`` for each item. An item must equal all of them."""
    whole_items: bool = False
    """Remove the items of the samples: all their windows, in all groups, also those that are not encoded yet."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The ids and items by column."""
        return [*({"id": id} for id in self.ids), *self.items]

    def named(self) -> Edits:
        """The ids and items as edits, which find the rows of both."""
        return Edits(rows=pa.Table.from_pylist(self.entries, schema=SCHEMA))


def read_ids(path: str) -> tuple[str, ...]:
    """Read ids of samples, one a line. ConfigError for a line that is no id."""
    ids = dict.fromkeys(line for _, line in _lines(path))
    for id in ids:
        if len(id) != ID_DIGITS or set(id) - set("0123456789abcdef"):
            raise ConfigError(f"{path}: '{id}' is no id of a sample, which has {ID_DIGITS} digits of 0-9 and a-f")
    return tuple(ids)


def read_items(path: str) -> tuple[dict[str, Any], ...]:
    """Read items, one a line: JSON with some of the columns ``MATCHED``, or else the key of an item as plain text."""
    items: dict[str, dict[str, Any]] = {}
    for number, line in _lines(path):
        item = _parse_item(line, f"{path}, line {number}") if line.startswith("{") else {"key": line}
        items[json.dumps(item)] = item
    return tuple(items.values())


def _parse_item(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from error
    types = {"ordinal": int} | dict.fromkeys(("source", "key", "uri"), str)
    wrong = [name for name, value in values.items() if name not in MATCHED or type(value) is not types[name]]
    if wrong or not values or set(values) == {"ordinal"}:
        raise ConfigError(
            f"{where} names no item: expected an object with some of source, ordinal (a whole number, with its source), key "
            f"and uri, got {line[:100]}"
        )
    return {name: values[name] for name in MATCHED if name in values}


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a local file that are not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path} names nothing")
    yield from lines

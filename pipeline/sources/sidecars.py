"""Captions and metadata in the text and JSON files beside an item, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import Reject
from pipeline.recipe import Recipe
from pipeline.sources.item import Item

CAPTION_COLUMNS = ("caption", "text")
OTHER_CAPTION_COLUMNS = ("captions", "texts", "prompt", "prompts", "cap", "video_caption")
"""Names that are taken if none of ``CAPTION_COLUMNS`` holds a caption."""
CAPTION_FIELDS = CAPTION_COLUMNS + OTHER_CAPTION_COLUMNS
"""Fields of a JSON file that may hold the caption, in order of preference. Their case does not matter."""
TEXT, JSON = "txt", "json"
"""The two roles that a sidecar file can have."""
SUFFIXES = {TEXT: ("txt", "caption"), JSON: ("json",)}
"""Suffixes of sidecar files by role, in order of preference and in lower case."""
ALL_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
MAX_BYTES = 16 << 20
"""Largest sidecar file that is read."""
MAX_NESTING = 200
"""Most lists and objects inside one another in a JSON file. Python can read and write fewer than a thousand."""
TOO_DEEP = f"it has more than {MAX_NESTING} lists or objects inside one another"
MAX_DIGITS = 4300
"""Most digits of a whole number in a JSON file: Python turns no longer text into a number."""
JSON_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
INT64 = range(-(1 << 63), 1 << 63)
NAN_TO_NULL = "nan_to_null"
"""``Item.note`` of an item with numbers in its text that are NaN, infinite or too large for a float; they became null."""


@dataclass(kw_only=True, slots=True)
class Description:
    """Captions and columns that an item gets from its sidecar files."""

    caption: str | None = None
    captions: list[str] | None = None
    """All captions, if there are several."""
    meta: dict[str, Any] = field(default_factory=dict)
    """User columns, by column name."""
    note: str | None = None


def is_sidecar(name: str) -> bool:
    """Return whether the last suffix of a name, or of several suffixes, is that of a sidecar file."""
    return name.rpartition(".")[2].lower() in ALL_SUFFIXES


def sidecar_suffixes(media_suffix: str) -> dict[str, list[str]]:
    """Suffixes that a media file's sidecar files may have, by role and in order of preference.

    ``media_suffix``: what follows the shared part of the names, in lower case. Example: ``mp4`` gives ``txt``, ``caption``,
    ``mp4.txt`` and ``mp4.caption`` for text; ``v2.mp4`` allows ``v2.txt`` and ``v2.caption`` as well.
    """
    bases = dict.fromkeys(["", media_suffix.rpartition(".")[0], media_suffix])
    return {
        role: [f"{base}.{suffix}".lstrip(".") for base in bases for suffix in suffixes]
        for role, suffixes in SUFFIXES.items()
    }


def choose_sidecars(media_suffix: str, available: Iterable[str]) -> dict[str, str]:
    """The sidecar files to use, by role: the preferred one of the ``available`` suffixes in lower case."""
    found = set(available)
    preferred = {
        role: [suffix for suffix in suffixes if suffix in found]
        for role, suffixes in sidecar_suffixes(media_suffix).items()
    }
    return {role: suffixes[0] for role, suffixes in preferred.items() if suffixes}


def add_sidecars(item: Item, contents: dict[str, bytes], recipe: Recipe) -> None:
    """Set an item's captions and user columns from its sidecar files, or its fault if they cannot be used."""
    try:
        found = parse_sidecars(contents, recipe.columns)
    except ValueError as error:
        message = f"the text or JSON beside it cannot be used: {error}"
        item.fault = item.fault or Reject("read", "bad_sidecar", message[:300])
        return
    item.caption, item.captions, item.meta, item.note = found.caption, found.captions, found.meta, found.note


def parse_sidecars(contents: dict[str, bytes], columns: tuple[str, ...]) -> Description:
    """Read sidecar files, given by role. The text is the caption. Without one, or if it is empty, the JSON may hold some.

    ``columns``: fields of the JSON to make columns, as ``name:type``. NaN and Infinity become null. ValueError if a file is
    otherwise not strict JSON in UTF-8, or a field does not have its type.
    """
    found = Description()
    texts: list[str] = []
    if JSON in contents:
        text = contents[JSON].decode("utf-8-sig")
        values, has_nan = _strict_json(text)
        if has_nan:
            text, found.note = json.dumps(values), NAN_TO_NULL
        found.meta["meta"] = text
        texts = captions_in(values)
        for column in columns:
            name, _, type_name = column.partition(":")
            found.meta[f"meta_{name}"] = _promote(values.get(name), type_name)
    if TEXT in contents:
        caption = contents[TEXT].decode("utf-8-sig").strip()
        if not caption and texts:
            caption = texts[0]
        texts = [caption, *(text for text in texts if text != caption)] if len(texts) > 1 else [caption]
    found.caption = texts[0] if texts else None
    found.captions = texts if len(texts) > 1 else None
    return found


def captions_in(values: dict[str, Any]) -> list[str]:
    """The captions in the first field of ``CAPTION_FIELDS`` that holds text, a number or a list of texts; else none."""
    by_name = {name.lower(): name for name in reversed(values)}
    for field_name in CAPTION_FIELDS:
        name = field_name if field_name in values else by_name.get(field_name)
        if name is not None and (texts := _texts(values[name])):
            return texts
    return []


def _texts(value: Any) -> list[str]:
    """The texts of a field; empty if it holds anything else, such as an object, which stays in ``meta``."""
    if isinstance(value, list):
        texts = [text for text in value if text is not None]
        return [_utf8(text) for text in texts] if all(isinstance(text, str) for text in texts) else []
    if isinstance(value, str):
        return [_utf8(value)]
    return [json.dumps(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def too_large(suffix: str, size_bytes: int) -> Reject:
    """The reject of an item whose sidecar file is above the limit."""
    return Reject("read", "bad_sidecar", f"its .{suffix} has {size_bytes} bytes; the limit is {MAX_BYTES}")


def _strict_json(text: str) -> tuple[dict[str, Any], bool]:
    """A JSON object with null for NaN and Infinity, and whether it has such numbers.

    ValueError for what else RFC 8259 does not allow, numbers that overflow and repeated fields.
    """
    constants: list[str] = []

    def finite_float(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    def bounded_int(number: str) -> int:
        if len(number) > MAX_DIGITS:
            raise ValueError(f"a number has {len(number)} digits; the limit is {MAX_DIGITS}")
        return int(number)

    def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a field is given twice")
        return values

    try:
        values = json.loads(
            text,
            parse_constant=constants.append,
            parse_float=finite_float,
            parse_int=bounded_int,
            object_pairs_hook=unique_fields,
        )
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    _check_nesting(values)
    return values, bool(constants)


def _check_nesting(values: dict[str, Any]) -> None:
    """ValueError if more than ``MAX_NESTING`` lists and objects are inside one another."""
    level: list[Any] = [values]
    for _ in range(MAX_NESTING):
        inner = (list(value.values()) if isinstance(value, dict) else value for value in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _promote(value: Any, type_name: str) -> Any:
    """A JSON value as its column's type. ValueError if it would have to be converted with a loss."""
    wanted = JSON_TYPES[type_name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("a number is too large for its column") from None
    if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        raise ValueError(f"a field should be {type_name} but is {type(value).__name__}")
    if wanted is int and value is not None and value not in INT64:
        raise ValueError("a number is too large for its column")
    return _utf8(value) if isinstance(value, str) else value


def _utf8(text: str) -> str:
    r"""The text. ValueError if it cannot be written as UTF-8, which is so for JSON's "\ud800"."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a surrogate pair") from None
    return text

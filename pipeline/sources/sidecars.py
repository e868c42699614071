"""Captions and metadata in the .txt and .json files beside an item, read strictly."""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

from pipeline.errors import Reject, Rejected
from pipeline.recipe import Recipe
from pipeline.sources import sidecars
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.storage.urls import scheme_of

CAPTION_COLUMNS = ("caption", "text")


SUFFIXES = ("txt", "json")
MAX_BYTES = 16 << 20
JSON_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
INT64 = range(-(1 << 63), 1 << 63)


def beside(location: str) -> dict[str, bytes]:
    """The files beside a media file of a folder, by suffix. Rejected for one that may not be read."""
    stem = location.rpartition(".")[0]
    found = {}
    for suffix in SUFFIXES:
        url = f"{stem}.{suffix}"
        try:
            found[suffix] = _read_local(url, suffix) if scheme_of(url) == "file" else _read_remote(url, suffix)
        except FileNotFoundError:
            continue
    return found


def too_large(suffix: str, size_bytes: int) -> Reject:
    """The reject of an item with a sidecar beyond the limit."""
    return Reject("read", "bad_sidecar", f"its .{suffix} has {size_bytes} bytes; the limit is {MAX_BYTES}")


def describe(found: dict[str, bytes], columns: tuple[str, ...]) -> tuple[str | None, dict[str, Any]]:
    """Caption and user columns that sidecars give: .txt is the caption, .json may hold one too.

    ``columns``: fields of the JSON to make columns, ``name:type``. ValueError for what is not strict JSON in UTF-8,
    or not of its type.
    """
    caption: str | None = None
    meta: dict[str, Any] = {}
    if "json" in found:
        text = found["json"].decode("utf-8")
        values = _strict_json(text)
        meta["meta"] = text
        caption = next((_utf8(str(values[c])) for c in CAPTION_COLUMNS if values.get(c) is not None), None)
        for column in columns:
            name, _, kind = column.partition(":")
            meta[f"meta_{name}"] = _promote(values.get(name), kind)
    if "txt" in found:
        caption = found["txt"].decode("utf-8").strip()
    return caption, meta


def _read_local(url: str, suffix: str) -> bytes:
    path = url.removeprefix("file://")
    try:
        # neither a link that leads out of the folder, nor a pipe that never answers
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(url) from None
    except OSError as error:
        what = "is a symbolic link" if os.path.islink(path) else f"cannot be opened ({error.strerror})"
        raise Rejected("read", "bad_sidecar", f"its .{suffix} {what}") from None
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise FileNotFoundError(url)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("read", "bad_sidecar", f"its .{suffix} is not a file")
        if found.st_size > MAX_BYTES:
            raise Rejected.because(too_large(suffix, found.st_size))
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(fd)


def _read_remote(url: str, suffix: str) -> bytes:
    size_bytes = file_facts(url).size
    if size_bytes > MAX_BYTES:
        raise Rejected.because(too_large(suffix, size_bytes))
    return read_whole(url, size_bytes)


def _strict_json(text: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a field is given twice")
        return values

    try:
        values = json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=without_doubles)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    return values


def _promote(value: Any, kind: str) -> Any:
    """A JSON value as a column's type; ValueError rather than a guess."""
    wanted = JSON_TYPES[kind]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("a number is too large for its column") from None
    if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        raise ValueError(f"a field should be {kind} but is {type(value).__name__}")
    if wanted is int and value is not None and value not in INT64:
        raise ValueError("a number is too large for its column")
    return _utf8(value) if isinstance(value, str) else value


def _utf8(text: str) -> str:
    r"""The text; ValueError if it cannot be written as UTF-8, as JSON's "\ud800" cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a surrogate pair") from None
    return text


def _describe(item: Item, found: dict[str, bytes], recipe: Recipe) -> None:
    """Caption and metadata from the files beside an item: .txt is the caption, .json may hold one too."""
    try:
        described = sidecars.describe(found, recipe.columns)
    except ValueError as error:
        item.fault = item.fault or Reject(
            "read", "bad_sidecar", f"the text or JSON beside it cannot be used: {error}"[:300]
        )
    else:
        item.caption, item.meta = described

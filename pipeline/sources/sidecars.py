"""Captions and metadata in the .txt and .json files beside an item, read strictly."""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

from pipeline.errors import Reject, Rejected
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import file_facts, read_whole
from pipeline.storage.links import LinkPolicy
from pipeline.storage.urls import scheme_of

CAPTION_COLUMNS = ("caption", "text")
SUFFIXES = ("txt", "json")
MAX_BYTES = 16 << 20
"""Largest sidecar file that is read."""
JSON_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
INT64 = range(-(1 << 63), 1 << 63)


def read_sidecars(location: str, links: LinkPolicy | None = None) -> dict[str, bytes]:
    """The sidecar files beside a media file of a folder, by suffix. Rejected if one of them may not be read.

    links: chooses the symbolic links that may be followed; without it, none may.
    """
    stem = location.rpartition(".")[0]
    contents = {}
    for suffix in SUFFIXES:
        url = f"{stem}.{suffix}"
        try:
            contents[suffix] = (
                _read_local(url, suffix, links) if scheme_of(url) == "file" else _read_remote(url, suffix)
            )
        except FileNotFoundError:
            continue
    return contents


def add_sidecars(item: Item, contents: dict[str, bytes], recipe: Recipe) -> None:
    """Set an item's caption and user columns from its sidecar files, or its fault if they cannot be used."""
    try:
        item.caption, item.meta = parse_sidecars(contents, recipe.columns)
    except ValueError as error:
        message = f"the text or JSON beside it cannot be used: {error}"
        item.fault = item.fault or Reject("read", "bad_sidecar", message[:300])


def parse_sidecars(contents: dict[str, bytes], columns: tuple[str, ...]) -> tuple[str | None, dict[str, Any]]:
    """The caption and the user columns in sidecar files. The .txt is the caption; without it, the .json may hold one.

    ``columns``: fields of the JSON to make columns, as ``name:type``. ValueError if a file is not strict JSON in
    UTF-8, or a field does not have its type.
    """
    caption: str | None = None
    meta: dict[str, Any] = {}
    if "json" in contents:
        text = contents["json"].decode("utf-8")
        values = _strict_json(text)
        meta["meta"] = text
        caption = next((_utf8(str(values[c])) for c in CAPTION_COLUMNS if values.get(c) is not None), None)
        for column in columns:
            name, _, type_name = column.partition(":")
            meta[f"meta_{name}"] = _promote(values.get(name), type_name)
    if "txt" in contents:
        caption = contents["txt"].decode("utf-8").strip()
    return caption, meta


def too_large(suffix: str, size_bytes: int) -> Reject:
    """The reject of an item whose sidecar file is above the limit."""
    return Reject("read", "bad_sidecar", f"its .{suffix} has {size_bytes} bytes; the limit is {MAX_BYTES}")


def _read_local(url: str, suffix: str, links: LinkPolicy | None) -> bytes:
    path = url.removeprefix("file://")
    if links is not None and os.path.islink(path):
        path = str(links.target(path) or path)
    try:
        # do not follow a link out of the folder, and do not wait for a pipe that nothing writes to
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(url) from None
    except OSError as error:
        problem = "is a symbolic link" if os.path.islink(path) else f"cannot be opened ({error.strerror})"
        raise Rejected("read", "bad_sidecar", f"its .{suffix} {problem}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError(url)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("read", "bad_sidecar", f"its .{suffix} is not a file")
        if status.st_size > MAX_BYTES:
            raise Rejected.because(too_large(suffix, status.st_size))
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
    """A JSON object. ValueError for what RFC 8259 does not allow, numbers that overflow and repeated fields."""

    def refuse_constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    def finite_float(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a field is given twice")
        return values

    try:
        values = json.loads(
            text, parse_constant=refuse_constant, parse_float=finite_float, object_pairs_hook=unique_fields
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    return values


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

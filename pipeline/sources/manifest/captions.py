"""Captions as manifests hold them: a text, a list of texts, or named texts. A caption is never the text of an object."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.sources.manifest.ranges import text_list


def is_text(type_: pa.DataType) -> bool:
    """Return whether values of a type are text, or numbers and dates that stand for themselves as text."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null, is_binary)
    return any(
        check(type_)
        for check in (*text, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal)
    )


def is_binary(type_: pa.DataType) -> bool:
    """Return whether values of a type are bytes."""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(type_) for check in checks)


def is_list(type_: pa.DataType) -> bool:
    """Return whether a type is a list of any kind."""
    return any(check(type_) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def usable_caption(type_: pa.DataType) -> bool:
    """Return whether a column of this type can be a caption, or the named texts of one."""
    return is_text(type_) or pa.types.is_struct(type_) or (is_list(type_) and is_text(type_.value_type))


def named_caption_columns(name: str, type_: pa.DataType) -> list[pa.Field]:
    """The user columns that a caption column of named texts becomes; empty for other columns."""
    return [pa.field(f"{name}_{sub.name}", sub.type) for sub in type_] if pa.types.is_struct(type_) else []


def texts_of(value: Any, *, spelled_lists: bool) -> list[str]:
    """The captions in a cell: none, one or several. ``spelled_lists``: lists may be spelled as text, as in CSV files."""
    if spelled_lists and isinstance(value, str):
        values = text_list(value)
        if values and all(isinstance(text, str) for text in values):
            return list(values)
    if isinstance(value, list | tuple):
        return [_text(part) for part in value if part is not None]
    return [] if value is None or isinstance(value, dict) else [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)

"""Finds the columns of a manifest that hold paths, captions and ranges, by their names and types."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.manifest.captions import is_binary, is_list, usable_caption
from pipeline.sources.manifest.ranges import (
    FRAME_PAIR_COLUMNS,
    LIST_COLUMNS,
    PAIR_COLUMNS,
    holds_pairs,
    is_date,
)
from pipeline.sources.sidecars import CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS
from pipeline.storage.parquet import schema_from_text, schema_to_text
from pipeline.storage.urls import canonical

PATH_COLUMNS = ("path", "url", "uri", "video", "file")
OTHER_PATH_COLUMNS = (
    *("file_name", "filename", "file_path", "filepath", "video_path", "media_path", "video_file", "clip_path"),
    *("video_url", "contentUrl", "mp4", "video_bytes", "image", "media", "bytes"),
)
"""Names that are taken if no column has a name of ``PATH_COLUMNS``."""
WEBVID_COLUMNS = ("contentUrl", "page_dir", "name")
"""Columns that only WebVid has: its captions are in ``name``."""

LONGEST_PATH = 4096
"""Bytes above which a value is a file, not a path. Files of videos also have zero bytes; paths have none."""

FirstValues = Callable[[str], Iterable[Any]]
"""Yields some of the first values of a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns of a manifest that are more than metadata."""

    path: str
    """Column with paths, URLs or the videos themselves; or a pattern such as ``videos/{id}.mp4``."""
    caption: str | None = None
    """Column with captions, or a field of a column such as ``json.title``."""
    ranges: tuple[str, ...] = ()
    """No column, one with pairs, or two with starts and ends."""
    has_content: bool = False
    """True if the path column holds the videos themselves."""
    types: pa.Schema
    """Type of every column that is read, by its name in the file."""

    @property
    def consumed(self) -> set[str]:
        """Columns that do not become user columns."""
        return {self.path, *self.ranges, *([self.caption] if self.caption else [])}

    @property
    def needed(self) -> set[str]:
        """Columns that hold paths, captions and ranges, also those that become user columns too."""
        fields = {self.caption.partition(".")[0]} if self.caption and self.caption not in self.types.names else set()
        return {*self.consumed, *pattern_fields(self.path), *fields}

    def to_text(self) -> str:
        """All fields as text, for the plan."""
        values = {"path": self.path, "caption": self.caption, "ranges": self.ranges, "has_content": self.has_content}
        return json.dumps(values | {"types": schema_to_text(self.types)})

    @classmethod
    def from_text(cls, text: str) -> Columns:
        """The columns that ``to_text`` wrote."""
        values = json.loads(text)
        types = schema_from_text(values["types"])
        return cls(**values | {"ranges": tuple(values["ranges"]), "types": types})


def choose_columns(schema: pa.Schema, first_values: FirstValues, recipe: Recipe, url: str) -> Columns:
    """Find the columns that hold paths, captions and ranges. ConfigError if the choice is not clear."""
    path = _path_column(schema, recipe, url)
    caption = _caption_column(schema, recipe, url)
    ranges = _range_columns(schema, first_values, recipe, url)
    has_content = path in schema.names and _holds_content(schema.field(path).type, path, first_values)
    return Columns(path=path, caption=caption, ranges=ranges, has_content=has_content, types=schema)


def pattern_fields(path: str) -> list[str]:
    """The columns that a pattern such as ``videos/{id}.mp4`` names; empty if it is a column's name."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(path) if name]
    except ValueError:
        return []


def find_names(names: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """The columns with one of the wanted names. Case and spaces around a name count only where it is there twice."""
    wanted = list(wanted)
    exact = [name for name in wanted if name in names]
    lower = {name.lower() for name in wanted}
    return exact or [name for name in names if name.strip().lower() in lower]


def _path_column(schema: pa.Schema, recipe: Recipe, url: str) -> str:
    given = recipe.path_column
    if given and given not in schema.names and (fields := pattern_fields(given)):
        if missing := [name for name in fields if name not in schema.names]:
            raise ConfigError(
                f"manifest '{canonical(url)}': --path-column {given} needs the columns {missing}, found {schema.names}"
            )
        return given
    found = _choose(schema.names, given, (PATH_COLUMNS, OTHER_PATH_COLUMNS), "path", url, required=True)
    assert found is not None
    type_ = schema.field(found).type
    if is_list(type_) or pa.types.is_map(type_) or (pa.types.is_struct(type_) and not _media_struct(type_)):
        raise ConfigError(
            f"manifest '{canonical(url)}': its path column '{found}' is {type_}, which is neither text nor a video; "
            "say which column is with --path-column"
        )
    return found


def _caption_column(schema: pa.Schema, recipe: Recipe, url: str) -> str | None:
    given = recipe.caption_column
    if given and given not in schema.names and "." in given and given.partition(".")[0] in schema.names:
        _check_field(schema, given, url)
        return given
    if not given and set(WEBVID_COLUMNS) <= set(schema.names):
        given = "name"
    found = _choose(schema.names, given, (CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS), "caption", url, required=False)
    if found is None or usable_caption(schema.field(found).type):
        return found
    if recipe.caption_column:
        raise ConfigError(
            f"manifest '{canonical(url)}': its caption column '{found}' is {schema.field(found).type}; "
            "expected text, a list of texts, or a struct of texts"
        )
    return None


def _check_field(schema: pa.Schema, name: str, url: str) -> None:
    top, *parts = name.split(".")
    type_ = schema.field(top).type
    for part in parts:
        if not pa.types.is_struct(type_) or type_.get_field_index(part) < 0:
            raise ConfigError(f"manifest '{canonical(url)}': there is no field '{name}' in its column '{top}'")
        type_ = type_.field(part).type


def _range_columns(schema: pa.Schema, first_values: FirstValues, recipe: Recipe, url: str) -> tuple[str, ...]:
    """The given range columns, or two columns of starts and ends, or one of pairs, with usual names."""
    if recipe.range_columns == ("none",):
        return ()
    if recipe.range_columns:
        chosen = [find_names(schema.names, [name]) for name in recipe.range_columns]
        if not all(len(found) == 1 for found in chosen):
            raise ConfigError(
                f"manifest '{canonical(url)}': expected the columns {', '.join(recipe.range_columns)} "
                f"(--range-columns), found {schema.names}"
            )
        return tuple(found[0] for found in chosen)
    for pair in FRAME_PAIR_COLUMNS if recipe.range_unit == "frames" else PAIR_COLUMNS:
        found = [find_names(schema.names, [name]) for name in pair]
        if all(len(names) == 1 for names in found):
            names = (found[0][0], found[1][0])
            if not any(_is_date_column(schema, name, first_values) for name in names):
                return names
    for name in find_names(schema.names, LIST_COLUMNS):
        if any(holds_pairs(value) for value in first_values(name)):
            return (name,)
    return ()


def _is_date_column(schema: pa.Schema, name: str, first_values: FirstValues) -> bool:
    type_ = schema.field(name).type
    return pa.types.is_timestamp(type_) or pa.types.is_date(type_) or any(map(is_date, first_values(name)))


def _holds_content(type_: pa.DataType, name: str, first_values: FirstValues) -> bool:
    """Return whether a column holds files. A column of bytes may also hold paths."""
    if _media_struct(type_):
        return True
    if not is_binary(type_):
        return False
    return any(isinstance(value, bytes) and not _looks_like_text(value) for value in first_values(name))


def _looks_like_text(value: bytes) -> bool:
    return len(value) < LONGEST_PATH and b"\0" not in value


def _media_struct(type_: pa.DataType) -> bool:
    """Return whether a type is that of a ``Video`` or ``Image`` feature: ``{bytes, path}``."""
    return pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0 and is_binary(type_.field("bytes").type)


def _choose(
    names: Sequence[str], given: str | None, usual: Sequence[tuple[str, ...]], role: str, url: str, *, required: bool
) -> str | None:
    """The given column, or the only one with a usual name. ConfigError if the choice is not clear."""
    for wanted in [(given,)] if given else usual:
        matches = find_names(names, wanted)
        if len(matches) > 1 or (not matches and given):
            break
        if matches:
            return matches[0]
    else:
        if not required:
            return None
    hint = ""
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        separator = "semicolons" if ";" in names[0] else "tabs"
        hint = f"; its columns are separated by {separator}: save it with commas, or as .tsv with tabs"
    raise ConfigError(
        f"manifest '{canonical(url)}': expected one {role} column named {given or ' or '.join(usual[0])}, "
        f"found {matches or 'none'} among {list(names)}; say which with --{role}-column{hint}"
    )

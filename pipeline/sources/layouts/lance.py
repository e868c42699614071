"""Lance tables: a row per video, with a path or URL, or the video itself, in one of the columns.

A version of a table never changes, so a plan records the version and its rows are numbers in it. Needs the extra
``lance``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, Reject, SourceChanged, StoreError
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.layouts.captions import caption_column, set_caption
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, check_facts_as_planned, new_unit
from pipeline.sources.url_policy import key_of, locate
from pipeline.storage.drivers.errors import describe_error
from pipeline.storage.urls import FileFacts, canonical, scheme_of

PATH_COLUMNS = ("path", "url", "uri", "video", "file")
BYTES_COLUMNS = ("video", "bytes", "video_bytes", "video_blob", "blob", "mp4", "data")
BLOB = b"lance-encoding:blob"
"""Metadata of a column whose values lie apart from the others and are read one by one."""
ROWS_AT_ONCE = 256
"""Number of rows without their videos held in memory at a time."""


class LanceFormat(SourceFormat):
    """A table of Lance at one version. An item per row."""

    name = "lance"
    suffixes = frozenset({"lance"})

    def open(self, name: str, url: str, parts: list[str]) -> Source:
        """The newest version of the table."""
        table = open_table(url)
        facts = FileFacts(size=table.count_rows(), etag=f"version {table.version}")
        return Source(name=name, format=self.name, url=url, facts=facts)

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut a table that is not planned yet into ranges of rows."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        schema = open_table(source.url, _version(source.facts.etag)).schema
        video, caption = video_column(schema, recipe, source.url), caption_column(schema.names, recipe, source.url)
        size, step = source.facts.size, recipe.unit_clips
        return NewUnits(
            units=[
                new_unit(source, generation, start=start, stop=min(start + step, size))
                for start in range(0, size, step)
            ],
            columns=pa.schema(
                [field for field in schema if field.name not in (video, caption) and not _is_bytes(field)]
            ),
        )

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per row of the unit, from the version that was planned."""
        return _items(unit, list(unit.ordinals), url, recipe)

    def some_items(
        self, unit: Unit, ordinals: set[int], url: str, recipe: Recipe, columns: pa.Schema
    ) -> Iterator[Item]:
        """Yield the items with these ordinals; other rows are not read."""
        return _items(unit, sorted(ordinals), url, recipe)

    def num_items(self, unit: Unit) -> int:
        """Number of rows in the unit."""
        return len(unit.ordinals)


def open_table(url: str, version: int | None = None) -> Any:
    """A version of a table, by default the newest.

    ConfigError if there is no table or Lance is not installed, SourceChanged if there is no such version any more,
    StoreError if the store does not answer.
    """
    try:
        import lance
    except ImportError:
        raise ConfigError(
            f"'{canonical(url)}' is a Lance table: install the extra 'lance' (pip install '.[lance]')"
        ) from None
    try:
        return lance.dataset(url, version=version, storage_options=_storage_options(url))
    except (ValueError, OSError, RuntimeError) as error:
        text = describe_error(error)
        if "not found" not in text:
            raise StoreError(f"the Lance table '{canonical(url)}' could not be opened: {text}") from None
        if version is not None:
            raise SourceChanged(f"version {version} of '{canonical(url)}' cannot be opened any more") from None
        raise ConfigError(f"there is no Lance table at '{canonical(url)}'") from None


def _storage_options(url: str) -> dict[str, str]:
    """Options of Lance's client of a store. It takes keys from the environment as other clients do.

    Unlike them, it refuses an endpoint without TLS unless it is told to use it.
    """
    has_plain_endpoint = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {"allow_http": "true"} if scheme_of(url) == "s3" and has_plain_endpoint else {}


def video_column(schema: pa.Schema, recipe: Recipe, url: str) -> str:
    """The column with videos or their paths: the recipe's, or the only one with a usual name. ConfigError otherwise."""
    if recipe.path_column:
        matches: list[str] = [name for name in schema.names if name == recipe.path_column]
    else:
        matches = [field.name for field in schema if _is_bytes(field) and field.name.casefold() in BYTES_COLUMNS]
        matches = matches or [
            field.name for field in schema if not _is_bytes(field) and field.name.casefold() in PATH_COLUMNS
        ]
    if len(matches) != 1:
        raise ConfigError(
            f"'{canonical(url)}': expected one column with videos or paths, found {matches or 'none'} among "
            f"{schema.names}; say which with --path-column"
        )
    return matches[0]


def _items(unit: Unit, ordinals: list[int], url: str, recipe: Recipe) -> Iterator[Item]:
    """Yield the items of rows. Videos inside the table are read one at a time."""
    table = open_table(url, _version(unit.etag))
    schema: pa.Schema = table.schema
    video, caption = video_column(schema, recipe, url), caption_column(schema.names, recipe, url)
    holds_videos = _is_bytes(schema.field(video))
    names = [field.name for field in schema if not _is_bytes(field) or (field.name == caption and not _is_blob(field))]
    for first in range(0, len(ordinals), ROWS_AT_ONCE):
        part = ordinals[first : first + ROWS_AT_ONCE]
        with _store_errors(url):
            rows = table.take(part, columns=names).to_pylist() if names else [{} for _ in part]
        for ordinal, row in zip(part, rows, strict=True):
            text = row.pop(caption, None) if caption else None
            if holds_videos:
                item = _item_with_video(table, ordinal, schema.field(video), row, unit, url, recipe)
            else:
                item = _item_with_path(ordinal, row.pop(video), url, recipe)
            set_caption(item, text)
            item.meta = {f"meta_{name}": value for name, value in row.items()}
            yield item


def _item_with_path(ordinal: int, target: Any, url: str, recipe: Recipe) -> Item:
    """The item of a row that names its video."""
    item = Item(ordinal=ordinal, key=key_of(target, url), uri="", trusted=False)
    locate(item, target, url, recipe.root)
    return item


def _item_with_video(
    table: Any, ordinal: int, field: pa.Field, row: dict[str, Any], unit: Unit, url: str, recipe: Recipe
) -> Item:
    """The item of a row that holds its video. Its key is a path or name in the row, or the number of the row."""
    names = (row[name] for name in row if name.casefold() in (*PATH_COLUMNS, "file_name", "name", "id"))
    name = next((str(value) for value in names if value is not None), f"row-{ordinal:08d}")
    item = Item(ordinal=ordinal, key=key_of(name, url), uri=f"{canonical(url)}#{ordinal}", facts=unit.facts)
    with _store_errors(url):
        if _is_blob(field):
            (blob,) = table.take_blobs(field.name, indices=[ordinal])
            size_bytes = blob.size()
            content = blob.readall() if 0 < size_bytes <= recipe.max_item_bytes else None
        else:
            content = table.take([ordinal], columns=[field.name])[field.name][0].as_py()
            size_bytes = len(content or b"")
    if not size_bytes:
        item.fault = Reject("read", "no_path", f"the row has nothing in the column '{field.name}'")
    elif size_bytes > recipe.max_item_bytes:
        message = f"{size_bytes} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
        item.fault = Reject("read", "too_large", message)
    else:
        item.content = content
    return item


@contextlib.contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Replace Lance's errors by a StoreError that names the table."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{canonical(url)} could not be read: {describe_error(error)}") from None


def _is_bytes(field: pa.Field) -> bool:
    return pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or _is_blob(field)


def _is_blob(field: pa.Field) -> bool:
    """Return whether a column has one of Lance's two blob encodings."""
    extension = (
        getattr(field.type, "extension_name", "") or (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    )
    return BLOB in (field.metadata or {}) or extension.startswith("lance.blob")


def _version(etag: str) -> int:
    return int(etag.removeprefix("version "))

"""The items of a unit: what a tar, a folder or a manifest's rows hold, opened one by one.

Whatever is wrong with one item is that item's reject; a source that is not as planned stops the job.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from pipeline import manifests, tars
from pipeline.errors import ConfigError, Rejected, SourceChanged, StoreError
from pipeline.plan import Unit
from pipeline.recipe import Recipe
from pipeline.sources import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from pipeline.store import FileFacts, canonical, open_filesystem, remote_errors, scheme_of

MAX_SIDECAR_BYTES = 16 << 20
JSON_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(kw_only=True, slots=True)
class Item:
    """A video or image in a source."""

    ordinal: int
    key: str
    uri: str
    caption: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """User columns, by column name."""
    facts: FileFacts | None = None
    """Of the file it came in; None until it is opened, for the targets of manifests."""
    content: bytes | None = field(default=None, repr=False)
    location: str = field(default="", repr=False)
    """URL to open it at, where it has no content yet; may carry a signature."""
    fault: Rejected | None = None
    """Why there is nothing to open."""


def items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    """Every item of a unit in order, also those that cannot be opened. SourceChanged if the source is not as planned.

    ``url``: where the unit's source is in this run. ``columns``: types of the user columns, as planned.
    """
    if unit.kind == "tar":
        return _tar_items(unit, url, recipe)
    if unit.kind == "manifest":
        return _manifest_items(unit, url, recipe, columns)
    return _folder_items(unit, url, recipe)


def fetch(item: Item, recipe: Recipe) -> int:
    """A file descriptor with the item's bytes, for the caller to close; sets ``item.facts`` where they were not known.

    Rejected if there is nothing to open. SourceChanged if a planned file is not as planned.
    """
    if item.fault is not None:
        raise item.fault
    if item.content is not None:
        return _in_memory(item.content)
    fs, path = open_filesystem(item.location)
    try:
        facts = FileFacts.of(fs.info(path))
        if item.facts not in (None, facts):
            raise SourceChanged(f"{item.uri} was {item.facts} when it was planned and is {facts} now")
        item.facts = facts
        if facts.size > recipe.max_item_bytes:
            raise Rejected("fetch", "too_large", f"{facts.size} bytes; the limit is {recipe.max_item_bytes}")
        if scheme_of(item.location) == "file":
            return os.open(path, os.O_RDONLY)
        return _in_memory(fs.cat_file(path))
    except FileNotFoundError:
        if item.facts is not None:
            raise SourceChanged(f"{item.uri} was there when it was planned and is gone now") from None
        raise Rejected("fetch", "not_found", "there is no such file") from None
    except remote_errors() as error:
        if scheme_of(item.location) in ("http", "https"):
            raise Rejected("fetch", "http_error", f"the server could not be read ({type(error).__name__})") from error
        raise StoreError(f"{item.uri} could not be read: {error}") from error


def _in_memory(content: bytes) -> int:
    fd = os.memfd_create("item")
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _check_unchanged(unit: Unit, fs: Any, path: str) -> None:
    try:
        facts = FileFacts.of(fs.info(path))
    except FileNotFoundError:
        raise SourceChanged(f"source {unit.source} was there when it was planned and is gone now") from None
    if facts != unit.facts:
        raise SourceChanged(f"source {unit.source} was {unit.facts} when it was planned and is {facts} now")


def _folder_items(unit: Unit, url: str, recipe: Recipe) -> Iterator[Item]:
    fs, root = open_filesystem(url)
    for ordinal, file in enumerate(unit.files, unit.start):
        location = f"{url.rstrip('/')}/{file.path}"
        item = Item(ordinal=ordinal, key=file.path, uri=canonical(location), facts=file.facts, location=location)
        stem = f"{root.rstrip('/')}/{file.path.rpartition('.')[0]}"
        sidecars = {}
        for suffix in ("txt", "json"):
            try:
                sidecars[suffix] = fs.cat_file(f"{stem}.{suffix}")
            except (FileNotFoundError, IsADirectoryError):
                continue
        _describe(item, sidecars, recipe)
        yield item


def _manifest_items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    fs, path = open_filesystem(url)
    _check_unchanged(unit, fs, path)
    types = pa.schema([(f.name.removeprefix("meta_"), f.type) for f in columns if f.name.startswith("meta_")])
    assert unit.stop is not None
    part = manifests.Slice(start=unit.start, stop=unit.stop, byte_start=unit.byte_start, byte_stop=unit.byte_stop)
    for ordinal, row in enumerate(manifests.rows(url, part, unit.header, types), unit.start):
        path_column = manifests.path_column(list(row), recipe, url)
        caption_column = manifests.caption_column(list(row), recipe, url)
        target = row.pop(path_column)
        caption = row.pop(caption_column) if caption_column else None
        item = Item(ordinal=ordinal, key=str(target), uri="", caption=None if caption is None else str(caption))
        item.meta = {f"meta_{name}": value for name, value in row.items()}
        try:
            item.location = _target(url, target)
            item.uri = canonical(item.location)
        except (Rejected, ConfigError) as error:
            item.fault = error if isinstance(error, Rejected) else Rejected("fetch", "forbidden_url", str(error))
        yield item


def _target(manifest_url: str, target: Any) -> str:
    """Where a manifest's row points to; relative paths start at the manifest's folder."""
    if not isinstance(target, str) or not target:
        raise Rejected("read", "no_path", "the row has no path")
    if "://" in target or "::" in target:
        absolute = target
    elif target.startswith("/"):
        absolute = "file://" + target
    else:
        absolute = f"{manifest_url.partition('?')[0].rpartition('/')[0] or '.'}/{target}"
    if scheme_of(absolute) == "file" and scheme_of(manifest_url) != "file":
        raise Rejected("fetch", "forbidden_url", "a remote manifest may not point to local files")
    return absolute


def _tar_items(unit: Unit, url: str, recipe: Recipe) -> Iterator[Item]:
    fs, path = open_filesystem(url)
    _check_unchanged(unit, fs, path)
    ordinal = unit.start
    with fs.open(path, "rb", block_size=8 << 20) as f:
        group = _Group("")
        try:
            for info, content in tars.members(f):
                key, _, suffix = _split_name(info.name)
                if info.isdir():
                    continue
                if key != group.key or not group.members:
                    if group.members:
                        yield group.item(unit, url, ordinal, recipe)
                        ordinal += 1
                    group = _Group(key)
                group.add(suffix, info, content, recipe)
        except tarfile.TarError as error:
            fault = Rejected("read", "damaged_tar", f"the tar cannot be read from here on: {error}")
            rest = Item(ordinal=ordinal, key=group.key, uri=canonical(url), facts=unit.facts, fault=fault)
            yield rest
            return
        if group.members:
            yield group.item(unit, url, ordinal, recipe)


def _split_name(name: str) -> tuple[str, str, str]:
    """A member's key and suffix, as webdataset splits them: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, dot, suffix.lower()


class _Group:
    """Adjacent members of a tar that share a key: one item."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: list[str] = []
        self.media: dict[str, bytes] = {}
        self.sidecars: dict[str, bytes] = {}
        self.fault: Rejected | None = None

    def add(self, suffix: str, info: tarfile.TarInfo, content: IO[bytes] | None, recipe: Recipe) -> None:
        self.members.append(suffix)
        last = suffix.rpartition(".")[2]
        if content is None:
            self.fault = Rejected("read", "not_a_file", f"member '{info.name[:200]}' is a link or device")
        elif last in MEDIA_SUFFIXES and info.size > recipe.max_item_bytes:
            self.fault = Rejected("read", "too_large", f"{info.size} bytes; the limit is {recipe.max_item_bytes}")
        elif last in MEDIA_SUFFIXES:
            self.media[suffix] = content.read()
        elif suffix in ("txt", "json") and info.size <= MAX_SIDECAR_BYTES:
            self.sidecars[suffix] = content.read()

    def item(self, unit: Unit, url: str, ordinal: int, recipe: Recipe) -> Item:
        """The item of this group; a video is taken before a picture of it."""
        videos = [s for s in self.media if s.rpartition(".")[2] in VIDEO_SUFFIXES] or list(self.media)
        if self.fault is None and len(videos) != 1:
            what = "no video or image" if not videos else f"{len(videos)} videos"
            self.fault = Rejected(
                "read", "no_media" if not videos else "several_media", f"{what} among {self.members}"[:300]
            )
        item = Item(ordinal=ordinal, key=self.key, uri=canonical(url), facts=unit.facts, fault=self.fault)
        if self.fault is None:
            item.uri = f"{canonical(url)}#{self.key}.{videos[0]}"
            item.content = self.media[videos[0]]
        _describe(item, self.sidecars, recipe)
        return item


def _describe(item: Item, sidecars: dict[str, bytes], recipe: Recipe) -> None:
    """Caption and metadata from the files beside an item: .txt is the caption, .json may hold one too."""
    try:
        if "json" in sidecars:
            text = sidecars["json"].decode("utf-8")
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("not an object")
            item.meta["meta"] = text
            item.caption = next((str(values[c]) for c in manifests.CAPTION_COLUMNS if values.get(c) is not None), None)
            for column in recipe.columns:
                name, _, kind = column.partition(":")
                item.meta[f"meta_{name}"] = _promote(values.get(name), kind)
        if "txt" in sidecars:
            item.caption = sidecars["txt"].decode("utf-8").strip()
    except ValueError as error:
        item.fault = item.fault or Rejected(
            "read", "bad_sidecar", f"the text or JSON beside it cannot be read: {error}"[:300]
        )


def _promote(value: Any, kind: str) -> Any:
    """A JSON value as a column's type; ValueError rather than a guess."""
    wanted = JSON_TYPES[kind]
    if value is None or (isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))):
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"a field should be {kind} but is {type(value).__name__}")

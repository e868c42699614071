"""The items of a unit: what a tar, a folder or a manifest's rows hold, opened one by one.

Whatever is wrong with one item is that item's reject; a source that is not as planned stops the job.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from pipeline.errors import Rejected, SourceChanged, StoreError
from pipeline.output import tar_writer as tars
from pipeline.output.plan import Unit
from pipeline.recipe import Recipe
from pipeline.sources import manifest as manifests
from pipeline.sources import sidecars
from pipeline.sources import url_policy as targets
from pipeline.sources.discovery import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from pipeline.sources.retrying_file import file_facts, open_steady, read_whole, reason
from pipeline.storage.retry import remote_errors
from pipeline.storage.store import FileFacts, canonical, scheme_of

MAX_MEMBERS = 100
"""Of one item in a tar."""
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


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
    end_byte: int = 0
    """Where the next item's first header is, in a tar."""
    trusted: bool = True
    """Whether the user named it; what a manifest names may not be in a private network."""


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

    Rejected if there is nothing to open. SourceChanged if a planned file is not as planned, StoreError if the store
    does not give it.
    """
    if item.fault is not None:
        raise item.fault
    if item.content is not None:
        return _in_memory(item.content)
    scheme = scheme_of(item.location)
    try:
        if scheme == "file":
            return _open_local(item, recipe)
        return _download(item, recipe) if scheme in targets.HTTP else _read_remote(item, recipe)
    except FileNotFoundError:
        if item.facts is not None:
            raise SourceChanged.between(item.uri, item.facts, None) from None
        raise Rejected("fetch", "not_found", "there is no such file") from None


def _open_local(item: Item, recipe: Recipe) -> int:
    try:
        # a named pipe would keep a blocking open waiting for ever
        fd = os.open(item.location.removeprefix("file://"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise Rejected("fetch", "not_readable", "this process may not read the file") from None
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            raise FileNotFoundError(item.uri) from None
        if error.errno == errno.ENXIO:
            raise Rejected("fetch", "not_a_file", "it is a device or socket") from None
        raise StoreError(f"{item.uri} could not be read: {reason(error)}") from None
    except ValueError:  # a NUL in its name
        raise FileNotFoundError(item.uri) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("fetch", "not_a_file", "it is a folder, device, pipe or socket")
        _check(item, FileFacts.of({"size": found.st_size, "mtime": found.st_mtime}), recipe)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_remote(item: Item, recipe: Recipe) -> int:
    facts = file_facts(item.location)
    _check(item, facts, recipe)
    return _in_memory(read_whole(item.location, facts.size))


def _download(item: Item, recipe: Recipe) -> int:
    from pipeline.sources import http_download as web  # its client takes a quarter of a driver's start

    fd = os.memfd_create("item")
    try:
        hosts = None if item.trusted else recipe.private_hosts
        _check(item, web.download(item.location, fd, recipe.max_item_bytes, hosts), recipe)
    except BaseException as error:
        os.close(fd)
        if not isinstance(error, remote_errors()):
            raise
        if getattr(error, "status", None) in (404, 410):
            raise FileNotFoundError(item.uri) from None
        if item.trusted:
            raise StoreError(f"{item.uri} could not be read: {reason(error)}") from None
        message = f"the server does not give the file: {reason(error)}"
        raise Rejected("fetch", "http_error", message) from None
    return fd


def _check(item: Item, facts: FileFacts, recipe: Recipe) -> None:
    """Note the file's facts; SourceChanged if others were planned."""
    if item.facts not in (None, facts):
        raise SourceChanged.between(item.uri, item.facts, facts)
    item.facts = facts
    if facts.size > recipe.max_item_bytes:
        raise Rejected("fetch", "too_large", f"{facts.size} bytes; the limit is {recipe.max_item_bytes}")


def _in_memory(content: bytes) -> int:
    fd = os.memfd_create("item")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd


def _check_unchanged(unit: Unit, url: str) -> None:
    try:
        facts = file_facts(url)
    except FileNotFoundError:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, None) from None
    if facts != unit.facts:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, facts)


def _folder_items(unit: Unit, url: str, recipe: Recipe) -> Iterator[Item]:
    for ordinal, file in enumerate(unit.files, unit.start):
        location = f"{url.rstrip('/')}/{file.path}"
        item = Item(ordinal=ordinal, key=file.path, uri=canonical(location), facts=file.facts, location=location)
        try:
            _describe(item, sidecars.beside(location), recipe)
        except Rejected as rejected:
            item.fault = rejected
        yield item


def _manifest_items(unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
    _check_unchanged(unit, url)
    types = pa.schema([(f.name.removeprefix("meta_"), f.type) for f in columns if f.name.startswith("meta_")])
    assert unit.stop is not None
    part = manifests.Slice(start=unit.start, stop=unit.stop, byte_start=unit.byte_start, byte_stop=unit.byte_stop)
    rows = manifests.rows(url, part, unit.header, types, unit.size)
    for ordinal, row in enumerate(rows, unit.start):
        path_column = manifests.path_column(list(row), recipe, url)
        caption_column = manifests.caption_column(list(row), recipe, url)
        target = row.pop(path_column)
        caption = row.pop(caption_column) if caption_column else None
        item = Item(ordinal=ordinal, key=targets.key_of(target, url), uri="", trusted=False)
        item.caption = None if caption is None else str(caption)
        item.meta = {f"meta_{name}": value for name, value in row.items()}
        try:
            item.location = targets.location_of(target, url)
            item.uri = canonical(item.location)
        except Rejected as rejected:
            item.fault = rejected
        except ValueError:
            item.fault = Rejected("fetch", "forbidden_url", "it is not a URL that can be read")
        yield item


def _tar_items(unit: Unit, url: str, recipe: Recipe) -> Iterator[Item]:
    _check_unchanged(unit, url)
    ordinal = unit.start
    with open_steady(url, unit.size) as f:
        group = _Group("")
        try:
            for info, content in tars.members(f):
                if info.isdir():
                    continue
                key, suffix = tars.split_name(info.name)
                if group.count and (key != group.key or suffix in group.members):
                    item = group.item(unit, url, ordinal, recipe)
                    item.end_byte = info.offset
                    yield item
                    ordinal += 1
                    group = _Group(key)
                group.key = key
                group.add(suffix, info, content, recipe)
        except tarfile.TarError as error:
            fault = Rejected("read", "damaged_tar", f"the tar cannot be read from here on: {error}")
            key = tars.printable(group.key)
            yield Item(ordinal=ordinal, key=key, uri=canonical(url), facts=unit.facts, fault=fault)
            return
        except FileNotFoundError:
            raise SourceChanged.between(f"source {unit.source}", unit.facts, None) from None
        if group.count:
            yield group.item(unit, url, ordinal, recipe)


class _Group:
    """Adjacent members of a tar that share a key: one item."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.count = 0
        self.held_bytes = 0
        self.members: list[str] = []
        self.media: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.sidecars: dict[str, bytes] = {}
        self.fault: Rejected | None = None

    def add(self, suffix: str, info: tarfile.TarInfo, content: IO[bytes] | None, recipe: Recipe) -> None:
        """Take a member in, or note why it spoils the item."""
        self.count += 1
        if self.fault is not None:
            return
        self.members.append(suffix)
        is_media = suffix.rpartition(".")[2] in MEDIA_SUFFIXES
        self.fault = self._fault(suffix, info, content, is_media, recipe)
        if self.fault is not None or content is None:
            self.media.clear()
        elif is_media:
            self.held_bytes += info.size
            self.media[suffix] = content.read()
            self.names[suffix] = info.name
        elif suffix in sidecars.SUFFIXES:
            self.sidecars[suffix] = content.read()

    def _fault(
        self, suffix: str, info: tarfile.TarInfo, content: IO[bytes] | None, is_media: bool, recipe: Recipe
    ) -> Rejected | None:
        """Why this member spoils its item."""
        if tars.printable(info.name) != info.name:
            return Rejected("read", "bad_key", "a member's name is not UTF-8")
        if self.count > MAX_MEMBERS:
            return Rejected("read", "too_many_members", f"more than {MAX_MEMBERS} members have this key")
        if content is None:
            return Rejected("read", "not_a_file", f"member '.{suffix[:200]}' is a link, a device or sparse")
        if is_media and self.held_bytes + info.size > recipe.max_item_bytes:
            size_bytes = self.held_bytes + info.size
            return Rejected("read", "too_large", f"{size_bytes} bytes; the limit is {recipe.max_item_bytes}")
        if suffix in sidecars.SUFFIXES and info.size > sidecars.MAX_BYTES:
            return sidecars.too_large(suffix, info.size)
        return None

    def item(self, unit: Unit, url: str, ordinal: int, recipe: Recipe) -> Item:
        """The item of this group; a video is taken before a picture of it."""
        videos = [s for s in self.media if s.rpartition(".")[2] in VIDEO_SUFFIXES] or list(self.media)
        if self.fault is None and len(videos) != 1:
            what = "no video or image" if not videos else f"{len(videos)} videos"
            self.fault = Rejected(
                "read", "no_media" if not videos else "several_media", f"{what} among {self.members}"[:300]
            )
        key = tars.printable(self.key)
        item = Item(ordinal=ordinal, key=key, uri=canonical(url), facts=unit.facts, fault=self.fault)
        if self.fault is None:
            item.uri = f"{canonical(url)}#{self.names[videos[0]]}"
            item.content = self.media[videos[0]]
        _describe(item, self.sidecars, recipe)
        return item


def _describe(item: Item, found: dict[str, bytes], recipe: Recipe) -> None:
    """Caption and metadata from the files beside an item: .txt is the caption, .json may hold one too."""
    try:
        described = sidecars.describe(found, recipe.columns)
    except ValueError as error:
        item.fault = item.fault or Rejected(
            "read", "bad_sidecar", f"the text or JSON beside it cannot be used: {error}"[:300]
        )
    else:
        item.caption, item.meta = described

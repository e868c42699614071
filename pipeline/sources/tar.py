"""Tar sources: WebDataset tars, whose adjacent members with one key are an item."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from pipeline.errors import Reject, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import sidecars, tar_members
from pipeline.sources.item import MEDIA_SUFFIXES, VIDEO_SUFFIXES, Item
from pipeline.sources.retrying_file import open_retrying
from pipeline.sources.sidecars import add_sidecars
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.storage.urls import canonical

MAX_MEMBERS = 100
"""Of one item in a tar."""


class TarFormat(SourceFormat):
    """An uncompressed tar. One unit holds all of it: only reading a tar tells how many items it has."""

    name = "tar"
    suffixes = frozenset({"tar"})
    sampling_note = "in tars from their beginning"
    shard_size_advice = "each tar becomes one, so cut or join the tars"

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """One unit for a tar that is not planned yet."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        return NewUnits(units=[new_unit(source, generation, start=0, stop=None)])

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield the items from the tar's start. A damaged tar ends with one faulty item for the rest of it."""
        check_file_as_planned(unit, url)
        ordinal = unit.start
        with open_retrying(url, unit.size) as f:
            group = _Group("")
            try:
                for info, content in tar_members.members(f):
                    if info.isdir():
                        continue
                    key, suffix = tar_members.split_name(info.name)
                    if group.count and (key != group.key or suffix in group.members):
                        item = group.item(unit, url, ordinal, recipe)
                        item.end_byte = info.offset
                        yield item
                        ordinal += 1
                        group = _Group(key)
                    group.key = key
                    group.add(suffix, info, content, recipe)
            except tarfile.TarError as error:
                fault = Reject("read", "damaged_tar", f"the tar cannot be read from here on: {error}")
                key = tar_members.printable(group.key)
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
        self.fault: Reject | None = None

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
    ) -> Reject | None:
        """Why this member spoils its item."""
        if tar_members.printable(info.name) != info.name:
            return Reject("read", "bad_key", "a member's name is not UTF-8")
        if self.count > MAX_MEMBERS:
            return Reject("read", "too_many_members", f"more than {MAX_MEMBERS} members have this key")
        if content is None:
            return Reject("read", "not_a_file", f"member '.{suffix[:200]}' is a link, a device or sparse")
        if is_media and self.held_bytes + info.size > recipe.max_item_bytes:
            size_bytes = self.held_bytes + info.size
            return Reject("read", "too_large", f"{size_bytes} bytes; the limit is {recipe.max_item_bytes}")
        if suffix in sidecars.SUFFIXES and info.size > sidecars.MAX_BYTES:
            return sidecars.too_large(suffix, info.size)
        return None

    def item(self, unit: Unit, url: str, ordinal: int, recipe: Recipe) -> Item:
        """The item of this group; a video is taken before a picture of it."""
        videos = [s for s in self.media if s.rpartition(".")[2] in VIDEO_SUFFIXES] or list(self.media)
        if self.fault is None and len(videos) != 1:
            what = "no video or image" if not videos else f"{len(videos)} videos"
            self.fault = Reject(
                "read", "no_media" if not videos else "several_media", f"{what} among {self.members}"[:300]
            )
        key = tar_members.printable(self.key)
        item = Item(ordinal=ordinal, key=key, uri=canonical(url), facts=unit.facts, fault=self.fault)
        if self.fault is None:
            item.uri = f"{canonical(url)}#{self.names[videos[0]]}"
            item.content = self.media[videos[0]]
        add_sidecars(item, self.sidecars, recipe)
        return item

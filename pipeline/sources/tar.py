"""Tar sources: WebDataset tars, whose adjacent members with one key are an item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from pipeline.errors import Reject, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.item import MEDIA_SUFFIXES, VIDEO_SUFFIXES, Item
from pipeline.sources.retrying_file import open_retrying
from pipeline.sources.sidecars import MAX_BYTES, SUFFIXES, add_sidecars, too_large
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.tar_members import DamagedTar, Member, members, printable, read_content, split_name
from pipeline.sources.units import Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.storage.urls import canonical

MAX_MEMBERS = 100
"""Largest number of members that one item may have."""


class TarFormat(SourceFormat):
    """An uncompressed tar. One unit holds all of it: only reading a tar tells how many items it has."""

    name = "tar"
    suffixes = frozenset({"tar"})
    sampling_note = "in tars from their beginning"
    shard_size_advice = "each tar becomes one, so cut or join the tars"
    final_reject = "read/damaged_tar"

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
                for member in members(f):
                    if member.is_folder:
                        continue
                    key, suffix = split_name(member.name)
                    if group.count and (key != group.key or suffix in group.suffixes):
                        item = group.item(unit, url, ordinal, recipe)
                        item.end_byte = member.offset
                        yield item
                        ordinal += 1
                        group = _Group(key)
                    group.key = key
                    group.add(suffix, member, f, recipe)
            except DamagedTar as error:
                fault = Reject("read", "damaged_tar", f"the tar cannot be read from here on: {error}")
                yield Item(ordinal=ordinal, key=printable(group.key), uri=canonical(url), facts=unit.facts, fault=fault)
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
        self.suffixes: list[str] = []
        self.names: dict[str, str] = {}
        """Names of the media members, by suffix."""
        self.media: dict[str, bytes] = {}
        self.sidecars: dict[str, bytes] = {}
        self.fault: Reject | None = None

    def add(self, suffix: str, member: Member, file: IO[bytes], recipe: Recipe) -> None:
        """Add a member and read its content, or set the fault that it gives the item."""
        self.count += 1
        if self.fault is not None:
            return
        self.suffixes.append(suffix)
        is_media = suffix.rpartition(".")[2] in MEDIA_SUFFIXES
        self.fault = self._fault_of(suffix, member, is_media, recipe)
        if self.fault is not None:
            self.media.clear()
        elif is_media:
            self.held_bytes += member.size_bytes
            self.media[suffix] = read_content(file, member)
            self.names[suffix] = member.name
        elif suffix in SUFFIXES:
            self.sidecars[suffix] = read_content(file, member)

    def _fault_of(self, suffix: str, member: Member, is_media: bool, recipe: Recipe) -> Reject | None:
        """The reject that this member makes its item, if any."""
        if printable(member.name) != member.name:
            return Reject("read", "bad_key", "a member's name is not UTF-8")
        if self.count > MAX_MEMBERS:
            return Reject("read", "too_many_members", f"more than {MAX_MEMBERS} members have this key")
        if not member.is_plain_file:
            return Reject("read", "not_a_file", f"member '.{suffix[:200]}' is a link, a device or sparse")
        if is_media and self.held_bytes + member.size_bytes > recipe.max_item_bytes:
            size_bytes = self.held_bytes + member.size_bytes
            return Reject(
                "read", "too_large", f"{size_bytes} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
            )
        if suffix in SUFFIXES and member.size_bytes > MAX_BYTES:
            return too_large(suffix, member.size_bytes)
        return None

    def item(self, unit: Unit, url: str, ordinal: int, recipe: Recipe) -> Item:
        """The item of this group. A video is chosen before an image of the same key."""
        videos = [s for s in self.media if s.rpartition(".")[2] in VIDEO_SUFFIXES] or list(self.media)
        if self.fault is None and len(videos) != 1:
            count = "no video or image" if not videos else f"{len(videos)} videos"
            message = f"{count} among {self.suffixes}"[:300]
            self.fault = Reject("read", "several_media" if videos else "no_media", message)
        item = Item(ordinal=ordinal, key=printable(self.key), uri=canonical(url), facts=unit.facts, fault=self.fault)
        if self.fault is None:
            item.uri = f"{canonical(url)}#{self.names[videos[0]]}"
            item.content = self.media[videos[0]]
        add_sidecars(item, self.sidecars, recipe)
        return item

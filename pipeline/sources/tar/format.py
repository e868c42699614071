"""Tar sources: WebDataset tars, whose members with one key are an item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

import pyarrow as pa

from pipeline.errors import Reject, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.item import MEDIA_SUFFIXES, VIDEO_SUFFIXES, Item, is_system_file
from pipeline.sources.sidecars import MAX_BYTES, add_sidecars, choose_sidecars, is_sidecar, too_large
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.tar.compressed import TarFile
from pipeline.sources.tar.members import (
    DamagedTar,
    DataAfterEnd,
    Member,
    members,
    printable,
    read_content,
    read_parts,
    split_name,
)
from pipeline.sources.tar.runs import MembersApart
from pipeline.sources.units import Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.storage.held_file import HeldFile
from pipeline.storage.urls import canonical

MAX_MEMBERS = 100
"""Largest number of members that one item may have."""
MAX_MEDIA_BYTES = 4 << 20
"""Size up to which a video or image is bytes."""
MAX_WITHOUT_VIDEO = 20_000
"""Number of keys of one tar, without a video that has bytes, that become a reject each. One reject stands for the others."""
MAX_TEXT_BYTES = 4 * MAX_BYTES
"""Bytes of an item's text members that are held at the same time."""


SUFFIXES = ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")


class TarFormat(SourceFormat):
    """A tar, perhaps compressed. One unit holds all of it: only reading a tar tells how many items it has."""

    name = "tar"
    suffixes = frozenset(SUFFIXES)
    sampling_note = "in tars from their beginning"
    shard_size_advice = "each tar becomes one, so cut or join the tars"
    final_reject = "read/damaged_tar"

    def recognizes(self, url: str) -> bool:
        """Return whether the name ends like that of a tar. The content tells how it is compressed."""
        return canonical(url).lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES))

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """One unit for a tar that is not planned yet."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        return NewUnits(units=[new_unit(source, generation, start=0, stop=None)])

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield the items from the tar's start. A damaged tar ends with one faulty item for the rest of it."""
        check_file_as_planned(unit, url)
        yield from _without_crowds(_TarReader(unit, url, recipe).items(), unit.start)


def _media_content(file: IO[bytes], member: Member) -> bytes | HeldFile:
    """The content of a video or image: as bytes, or in a file that counts against the memory budget if it is large."""
    if member.size_bytes <= MAX_MEDIA_BYTES:
        return read_content(file, member)
    content = HeldFile()
    for part in read_parts(file, member):
        content.append(part)
    content.freeze()
    return content


def _without_crowds(items: Iterator[Item], start: int) -> Iterator[Item]:
    """Number the items. Past ``MAX_WITHOUT_VIDEO`` of those that hold nothing, the last one stands for all the others."""
    num_without, last = 0, None
    for ordinal, item in enumerate(items, start):
        item.ordinal = ordinal
        if not _holds_nothing(item):
            yield item
            continue
        num_without += 1
        if num_without <= MAX_WITHOUT_VIDEO:
            yield item
        else:
            last = item
    if last is not None:
        num_more = num_without - MAX_WITHOUT_VIDEO
        message = f"{num_more} more keys of the tar, of which this is the last, have no video or image with any bytes"
        last.fault, last.content = Reject("read", "no_media", message), None
        yield last


def _holds_nothing(item: Item) -> bool:
    return (item.fault is not None and item.fault.reason == "no_media") or item.content == b""


class _TarReader:
    """Goes through a tar once and makes items of its runs of members."""

    def __init__(self, unit: Unit, url: str, recipe: Recipe) -> None:
        self._unit = unit
        self._url = url
        self._recipe = recipe
        self._tar = TarFile(url, unit.size)
        self._apart = MembersApart(self._tar.open)
        self._group: _Group | None = None

    def items(self) -> Iterator[Item]:
        """Yield every item, without its ordinal."""
        with self._tar, self._apart, self._tar.open() as f:
            try:
                yield from self._whole_items(f)
            except DamagedTar as error:
                fault = Reject("read", "damaged_tar", f"the tar cannot be read from here on: {error}")
                yield self._item(printable(self._group.key) if self._group else "", fault)
            except FileNotFoundError:
                raise SourceChanged.between(f"source {self._unit.source}", self._unit.facts, None) from None

    def _whole_items(self, file: IO[bytes]) -> Iterator[Item]:
        """Yield the items up to the end of the tar, or up to the group in which it is damaged."""
        damage = None
        try:
            for member in members(file):
                if member.is_folder or is_system_file(member.name):
                    continue
                key, suffix = split_name(member.name)
                if self._group is not None and not self._group.takes(key, suffix):
                    yield from self._finish(self._group, member.offset)
                    self._group = None
                self._group = self._group or _Group(key, member.offset)
                self._group.add(suffix, member, file, self._recipe)
        except DataAfterEnd as error:
            damage = error
        if self._group is not None:
            yield from self._finish(self._group, file.tell())
            self._group = None
        if damage is not None:
            raise damage

    def _finish(self, group: _Group, end_byte: int) -> Iterator[Item]:
        """Yield the item of a group, or a faulty item for each of its videos. Nothing if its members join another group."""
        item = self._item(printable(group.key), group.fault or group.media_fault())
        if group.fault is None and group.is_without_media:
            if self._apart.is_joined_elsewhere(group.key, group.offset):
                return
            item.fault = self._apart.fault(group.key, with_media=True) or item.fault
        if item.fault is None:
            self._describe(item, group)
        if item.fault is None and (item.caption is None or self._apart.is_known):
            self._join(item, group)
        if item.fault is None:
            item.uri = f"{canonical(self._url)}#{group.media_names[group.chosen]}"
            item.content = group.media[group.chosen]
        names = group.media_names.values() if item.fault and len(group.media_names) > 1 else []
        for found in [self._item(printable(name), item.fault) for name in names] or [item]:
            found.end_byte = self._tar.packed_offset(end_byte)
            yield found

    def _join(self, item: Item, group: _Group) -> None:
        """Add text members of the same key that stand elsewhere in the tar. A fault if it is not clear whose they are."""
        elsewhere = self._apart.texts_to_join(group.key, group.offset)
        if elsewhere is None and item.caption is None:
            item.fault = self._apart.fault(group.key, with_media=False)
        elif elsewhere:
            for text in elsewhere:
                group.add_text(text.suffix, text.size_bytes, partial(self._apart.read, text))
            self._describe(item, group)

    def _describe(self, item: Item, group: _Group) -> None:
        """Set an item's captions and columns from the text members that belong to its media member."""
        contents = {}
        for role, suffix in choose_sidecars(group.chosen, group.text_bytes).items():
            if suffix not in group.texts:
                item.fault = too_large(suffix, group.text_bytes[suffix])
                return
            contents[role] = group.texts[suffix]
        add_sidecars(item, contents, self._recipe)

    def _item(self, key: str, fault: Reject | None) -> Item:
        return Item(ordinal=0, key=key, uri=canonical(self._url), facts=self._unit.facts, fault=fault)


class _Group:
    """Adjacent members of a tar that share a key."""

    def __init__(self, key: str, offset: int) -> None:
        self.key = key
        self.offset = offset
        self.fault: Reject | None = None
        self.media: dict[str, bytes | HeldFile] = {}
        """Content of the media members, by suffix."""
        self.media_names: dict[str, str] = {}
        """Names of the media members by suffix, also where a fault kept them from being read."""
        self.texts: dict[str, bytes] = {}
        """Content of the text members by suffix, except those that are too large."""
        self.text_bytes: dict[str, int] = {}
        """Sizes of all text members."""
        self._count = 0
        self._suffixes: list[str] = []

    @property
    def is_without_media(self) -> bool:
        """Return whether there is no video or image in the group."""
        return not self.media_names

    @property
    def chosen(self) -> str:
        """Suffix of the media member to encode. A video comes before an image."""
        return self._candidates()[0]

    def takes(self, key: str, suffix: str) -> bool:
        """Return whether a member belongs to the group. A second member of the same name starts a new one."""
        return key == self.key and suffix not in self._suffixes

    def add(self, suffix: str, member: Member, file: IO[bytes], recipe: Recipe) -> None:
        """Add a member and read its content, or set the fault that it gives the item."""
        self._count += 1
        is_media = suffix.rpartition(".")[2] in MEDIA_SUFFIXES
        if is_media:
            self.media_names[suffix] = member.name
        if self.fault is not None:
            return
        self._suffixes.append(suffix)
        self.fault = self._fault_of(suffix, member, is_media, recipe)
        if self.fault is not None:
            self.media.clear()
        elif is_media:
            self.media[suffix] = _media_content(file, member)
        elif is_sidecar(suffix):
            self.add_text(suffix, member.size_bytes, lambda: read_content(file, member))

    def add_text(self, suffix: str, size_bytes: int, read: Callable[[], bytes]) -> None:
        """Add a text member, and read it unless it is too large."""
        self.text_bytes[suffix] = size_bytes
        if size_bytes <= MAX_BYTES and size_bytes + sum(map(len, self.texts.values())) <= MAX_TEXT_BYTES:
            self.texts[suffix] = read()

    def media_fault(self) -> Reject | None:
        """The reject of a group that has not exactly one video, or without videos one image."""
        count = len(self._candidates())
        if count == 1:
            return None
        if count == 0:
            return Reject("read", "no_media", f"no video or image among {self._suffixes}"[:300])
        message = f"{count} videos have the key '{printable(self.key)}', which ends at the first dot of their names"
        return Reject("read", "several_media", f"{message}: {self._suffixes}"[:300])

    def _candidates(self) -> list[str]:
        return [suffix for suffix in self.media if suffix.rpartition(".")[2] in VIDEO_SUFFIXES] or list(self.media)

    def _fault_of(self, suffix: str, member: Member, is_media: bool, recipe: Recipe) -> Reject | None:
        """The reject that this member makes its item, if any."""
        if printable(member.name) != member.name:
            return Reject("read", "bad_key", "a member's name is not UTF-8")
        if self._count > MAX_MEMBERS:
            return Reject("read", "too_many_members", f"more than {MAX_MEMBERS} members have this key")
        if not member.is_plain_file:
            return Reject("read", "not_a_file", f"member '.{suffix[:200]}' is a link, a device or sparse")
        size_bytes = member.size_bytes + sum(map(len, self.media.values()))
        if is_media and size_bytes > recipe.max_item_bytes:
            return Reject(
                "read", "too_large", f"{size_bytes} bytes; the limit is {recipe.max_item_bytes} (--max-item-gb)"
            )
        return None

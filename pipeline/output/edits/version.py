"""Versions of an output: an index, the edits that apply to it, and the tags that name such a pair for good."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError
from pipeline.output.dataset import damaged, parse_record
from pipeline.output.edits.edits import Edits, newest_edits, read_edits
from pipeline.output.index import index_path, newest_index, read_index
from pipeline.output.layout.own_files import TAG
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.named_files import get_if_present
from pipeline.storage.store import Store

_PINNED = re.compile(r"index=(\d+)(?:,edits=(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputVersion:
    """Content of an output at one moment: an index, or the units that a running job has committed so far."""

    index: int | None = None
    """Generation of the index."""
    edits: int | None = None
    """Generation of the edits; None without edits."""
    tag: str | None = None
    """The tag by which the version was opened."""
    unit_metadata: list[str] = field(default_factory=list)
    """Paths of the unit metadata, where there is no index yet."""

    @property
    def name(self) -> str | None:
        """``index=3,edits=1``, which opens this version again; None without an index."""
        if self.index is None:
            return None
        return f"index={self.index}" if self.edits is None else f"index={self.index},edits={self.edits}"

    def to_json(self) -> str:
        """The text that ``from_json`` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> OutputVersion:
        """The version that ``to_json`` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A name for a version, which never changes."""

    index: int
    edits: int | None
    samples: int
    """Number of samples that the version has."""
    by: str
    """Who made the tag: user@host."""
    time: str
    """When it was made, in UTC."""

    @property
    def version(self) -> OutputVersion:
        """The version that the tag names."""
        return OutputVersion(index=self.index, edits=self.edits)

    def to_json(self) -> bytes:
        """The content of the tag's file."""
        values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(self)
        return json.dumps(values, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Tag:
        """The tag that ``to_json`` wrote. IntegrityError, which begins with ``where``, if it cannot be understood."""
        values = parse_record(content, where, ["format_version", *(f.name for f in dataclasses.fields(cls))])
        del values["format_version"]
        if not isinstance(values["index"], int) or not isinstance(values["edits"], int | None):
            raise damaged(where, "its generations are not numbers")
        return cls(**values)


def find_newest_version(store: Store) -> OutputVersion:
    """Find the newest index, or the committed units; edits are left out. ConfigError if there are none."""
    index = newest_index(store)
    if index is not None:
        return OutputVersion(index=index.generation)
    if not store.lists_files:
        raise ConfigError(
            f"{store.url} has no {index_path(0)}: from a web server, only the output of a finished job can be read"
        )
    paths = list(newest_unit_metadata(store).values())
    if not paths:
        raise ConfigError(f"{store.url} has no committed samples; encode some first")
    return OutputVersion(unit_metadata=paths)


def find_version(store: Store, wanted: str | None) -> OutputVersion:
    """Find a version by its tag or by its name (``index=3,edits=1``); None for the newest. ConfigError if there is none."""
    if wanted is None:
        return dataclasses.replace(find_newest_version(store), edits=newest_edits(store).generation)
    if pinned := _PINNED.fullmatch(wanted):
        index, edits = int(pinned[1]), None if pinned[2] is None else int(pinned[2])
        return OutputVersion(index=index, edits=edits)
    tag = read_tag(store, wanted)
    return dataclasses.replace(tag.version, tag=wanted)


def edits_of(store: Store, version: OutputVersion) -> Edits:
    """The edits of a version. ConfigError if they are not there."""
    if version.edits is None:
        return Edits()
    try:
        return read_edits(store, version.edits)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.url} has no generation {version.edits} of edits, as version {version.name} needs"
        ) from None


def tag_path(name: str) -> str:
    """Path of a tag. ConfigError for a name that no tag can have."""
    path = f"tags/{name}.json"
    if not TAG.fullmatch(path):
        raise ConfigError(
            f"'{name}' cannot be a tag: a tag has up to 64 letters, digits, '-', '_' and '.', and begins with a letter or a "
            "digit. A version without a tag is written index=3 or index=3,edits=1"
        )
    return path


def read_tag(store: Store, name: str) -> Tag:
    """Read a tag. ConfigError if there is none, with the tags that there are."""
    path = tag_path(name)
    try:
        content = store.get(path) if store.lists_files else get_if_present(store, path, _looks_like_json)
    except FileNotFoundError:
        content = None
    if content is None:
        names = list(tag_names(store))
        known = f"; there are {', '.join(names)}" if names else ""
        raise ConfigError(f"{store.url} has no tag '{name}'{known}")
    return Tag.from_json(content, f"{store.url}/{path}")


def edits_of_tag(store: Store, name: str) -> Edits:
    """The edits of a tag. ConfigError if its index or its edits are gone."""
    version = find_version(store, name)
    try:
        read_index(store, version.index or 0)
    except FileNotFoundError:
        raise ConfigError(f"{store.url} has no {index_path(version.index or 0)}, as the tag '{name}' needs") from None
    return edits_of(store, version)


def tag_names(store: Store) -> list[str]:
    """Names of all tags, sorted; empty for a web server, whose files are not listed."""
    paths: dict[str, Any] = store.list_files("tags") if store.lists_files else {}
    return sorted(match[1] for path in paths if (match := TAG.fullmatch(path)))


def _looks_like_json(content: bytes) -> bool:
    return content.lstrip().startswith(b"{")

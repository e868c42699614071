"""Sources, and the units that planning cuts them into."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import SourceChanged
from pipeline.sources.file_table import FILE_TYPE, Files
from pipeline.sources.retrying_file import file_facts
from pipeline.storage.urls import FileFacts, canonical

NO_FACTS = FileFacts(size=0, etag="")
STRINGS = "strings"
"""Value of ``Unit.format`` for units of a text layer, whose items are strings and come from no source."""
IMPORTED = "imported"
"""Value of ``Unit.format`` for units of latents that other programs made. ``Unit.details`` names their format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One tar, manifest or folder as planning saw it."""

    name: str
    """Canonical URL without credentials, or the NAME that the user gave as ``NAME=URL``."""
    format: str
    """Name of the source's ``SourceFormat``."""
    url: str
    """URL as the user gave it, with what is needed to open it. Never written to the output."""
    facts: FileFacts = NO_FACTS
    """Size and entity tag of a source that is one file."""
    files: Files = field(default_factory=Files)
    """Files of a source that is many files, sorted by path."""
    header: str = ""
    """Text that the format found when it opened the source and needs to plan it. Not recorded."""
    notes: tuple[str, ...] = ()
    """Sentences about the source for the user, such as what was passed over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """An item to encode again after a reject."""

    ordinal: int
    windows: tuple[int, ...]
    """Indices of the rejected windows; empty if the item was rejected as a whole."""
    groups: tuple[str, ...] = ()
    """Group of buckets of each of these windows; empty in outputs without groups."""

    @property
    def wanted(self) -> tuple[tuple[int, str], ...]:
        """Index and group of each window; the group is empty in outputs without groups."""
        return tuple(zip(self.windows, self.groups or ("",) * len(self.windows), strict=True))

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values; no groups if there are none, so that plans without groups stay as they are."""
        values: dict[str, Any] = {"ordinal": self.ordinal, "windows": list(self.windows)}
        return values | {"groups": list(self.groups)} if self.groups else values


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The items whose samples go to one output shard. A row of the plan.

    The fields from ``byte_start`` to ``details``, and ``files``, are there for the unit's format: only the format's own
    modules read them. The plan stores ``files`` as Arrow columns, because a folder may have ten million
    of them.
    """

    name: str
    source: str
    """Name of the source."""
    format: str
    """Name of the source's ``SourceFormat``."""
    generation: int
    """Number of the planning run that added the unit."""
    start: int
    """Ordinal of the unit's first item in its source."""
    stop: int | None
    """Ordinal after the unit's last item; None if the format does not count items when it plans."""
    byte_start: int = 0
    """First byte of the unit's part of a text file."""
    byte_stop: int = 0
    """Byte after the unit's part of a text file."""
    header: str = ""
    """Text that belongs before every part of the file, such as a CSV file's first line."""
    row_start: int = 0
    """First row of the unit's part of a table, whose rows may have several items."""
    row_stop: int = 0
    """Row after the unit's part of a table."""
    details: str = ""
    """Text that the unit's format keeps for itself, the same for all units of a source."""
    size: int = 0
    """Size in bytes of a source that is one file."""
    etag: str = ""
    """Entity tag of a source that is one file."""
    files: Files = dataclasses.field(default_factory=Files)
    """The unit's files, if the source is many files."""
    retries: tuple[Retry, ...] = ()
    """If not empty: encode only these of the unit's items."""

    @property
    def facts(self) -> FileFacts:
        """Planned size and entity tag of a source that is one file."""
        return FileFacts(size=self.size, etag=self.etag)

    @property
    def ordinals(self) -> range:
        """Ordinals of the unit's items. Only for formats that count items when they plan."""
        assert self.stop is not None, f"unit {self.name} was planned without counting its items"
        return range(self.start, self.stop)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return self.without_files() | {"files": self.files.rows.to_pylist()}

    def without_files(self) -> dict[str, Any]:
        """All fields but ``files`` as plain values: a row of the plan without its largest column."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        return values | {"retries": [retry.to_json() for retry in self.retries]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Unit:
        """The unit that ``to_json`` wrote."""
        return cls.with_files(values, Files(pa.chunked_array([values["files"]], FILE_TYPE)))

    @classmethod
    def with_files(cls, values: dict[str, Any], files: Files) -> Unit:
        """The unit that ``without_files`` described, with its files."""
        retries = tuple(
            Retry(ordinal=r["ordinal"], windows=tuple(r["windows"]), groups=tuple(r.get("groups") or ()))
            for r in values["retries"]
        )
        # units of one source share these texts
        shared: dict[str, Any] = {name: sys.intern(values[name]) for name in ("header", "details") if name in values}
        return cls(**values | shared | {"files": files, "retries": retries})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every unit of an output, and the user columns of each generation."""

    units: list[Unit]
    columns: list[pa.Schema]
    """Schema of the user columns, by generation."""


def new_unit(source: Source, generation: int, *, start: int, stop: int | None, **fields: Any) -> Unit:
    """A unit of ``source`` with its name, and with the planned size and entity tag. ``fields``: the format's own."""
    stem = canonical(source.name if "://" in source.name else source.url).rpartition("/")[2].rpartition(".")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", (stem or source.name.rpartition("/")[2]).lower()).strip("-")[:40] or "unit"
    return Unit(
        name=unit_name(slug, source.name, start, stop, generation),
        source=source.name,
        format=source.format,
        generation=generation,
        start=start,
        stop=stop,
        size=source.facts.size,
        etag=source.facts.etag,
        **fields,
    )


def unit_name(slug: str, source: str, start: int, stop: int | None, generation: int) -> str:
    """A readable slug, made unique by a hash of the source, the range of ordinals and the generation."""
    text = "\0".join(map(str, (source, start, stop, generation)))
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_facts_as_planned(source: Source, planned: Unit) -> None:
    """Raise SourceChanged if a source that is one file differs from what an earlier plan saw."""
    if source.facts != planned.facts:
        raise SourceChanged.between(f"source {source.name}", planned.facts, source.facts)


def check_file_as_planned(unit: Unit, url: str) -> None:
    """Raise SourceChanged if the file that a unit was cut from is gone, or has another size or entity tag."""
    try:
        facts = file_facts(url)
    except FileNotFoundError:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, None) from None
    if facts != unit.facts:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, facts)

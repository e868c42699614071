"""Sources and the units that they are cut into."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import SourceChanged
from pipeline.sources.file_table import FILE_TYPE, Files
from pipeline.sources.retrying_file import file_facts
from pipeline.storage.urls import FileFacts, canonical

NO_FACTS = FileFacts(size=0, etag="")

Format = Literal["tar", "manifest", "folder"]


def _check_unchanged(unit: Unit, url: str) -> None:
    try:
        facts = file_facts(url)
    except FileNotFoundError:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, None) from None
    if facts != unit.facts:
        raise SourceChanged.between(f"source {unit.source}", unit.facts, facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One tar, manifest or folder as planning saw it."""

    name: str
    format: Format
    url: str
    """As given, with what is needed to open it. Never written to the output."""
    facts: FileFacts = NO_FACTS
    """Of a tar or manifest."""
    files: Files = field(default_factory=Files)
    """Of a folder, by path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """An item to try again."""

    ordinal: int
    windows: tuple[int, ...]
    """Those that were rejected; none where the item was rejected as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The items whose samples go to one output shard."""

    name: str
    source: str
    format: Format
    generation: int
    start: int
    """Ordinal of the first item in its source."""
    stop: int | None
    """Ordinal after the last item; None to the end of a tar."""
    byte_start: int = 0
    byte_stop: int = 0
    """Of the rows in a text manifest."""
    header: str = ""
    """First line of a CSV manifest."""
    size: int = 0
    etag: str = ""
    files: Files = dataclasses.field(default_factory=Files)
    retries: tuple[Retry, ...] = ()
    """Where not empty: of the items from ``start`` to ``stop``, only these."""

    @property
    def facts(self) -> FileFacts:
        """Of the tar or manifest."""
        return FileFacts(size=self.size, etag=self.etag)

    @property
    def cost(self) -> int:
        """A guess at how long it takes, to start long units early; comparable within one format."""
        return self.size if self.format == "tar" else self.files.size_bytes or (self.stop or 0) - self.start

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a row of the plan."""
        return self.without_files() | {"files": self.files.rows.to_pylist()}

    def without_files(self) -> dict[str, Any]:
        """The same but for the files, which may be many."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        return values | {"retries": [{"ordinal": r.ordinal, "windows": list(r.windows)} for r in self.retries]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Unit:
        """The unit that ``to_json`` wrote."""
        return cls.with_files(values, Files(pa.chunked_array([values["files"]], FILE_TYPE)))

    @classmethod
    def with_files(cls, values: dict[str, Any], files: Files) -> Unit:
        """The unit that ``without_files`` described, with its files."""
        retries = tuple(Retry(ordinal=r["ordinal"], windows=tuple(r["windows"])) for r in values["retries"])
        return cls(**values | {"files": files, "retries": retries})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every unit of an output, and the user columns of each generation."""

    units: list[Unit]
    columns: list[pa.Schema]


def _unit(source: Source, generation: int, *, start: int, stop: int | None, **fields: Any) -> Unit:
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
    """A name that people recognise, made unique by the part of the source and the generation."""
    text = "\0".join(map(str, (source, start, stop, generation)))
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

"""The interface between a source format and the rest of the pipeline. ``README.md`` has the steps to add a format.

Each format is one subclass in a file of its own, registered in ``formats.py``. Its objects have no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import existing_file_facts
from pipeline.sources.units import Source, Unit
from pipeline.storage.urls import canonical, suffix_of

NO_COLUMNS = pa.schema([])


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUnits:
    """The result of planning one source."""

    units: list[Unit] = field(default_factory=list)
    columns: pa.Schema = NO_COLUMNS
    """Columns of the source that go to the samples' metadata, by their names in the source."""
    any_column_can_be_text: bool = False
    """True if the source has no types of its own, so that each of its columns can also be read as text."""
    notes: list[str] = field(default_factory=list)
    """Sentences for people about what planning saw and did not refuse."""


class SourceFormat(ABC):
    """Finds sources of one format, cuts them into units and reads the units' items.

    The defaults fit a source that is one file and does not count its items when it is planned.
    """

    name: ClassVar[str]
    """Value of ``Source.format`` and ``Unit.format``; stored in the plan, so it never changes."""
    suffixes: ClassVar[frozenset[str]] = frozenset()
    """Suffixes of file names that mark a source of this format, in lower case and without the dot."""
    sampling_note: ClassVar[str] = ""
    """How a dry run takes its items, if it does not draw them at random. Follows a comma."""
    shard_size_advice: ClassVar[str] = ""
    """How to change the size of shards, if ``--unit-clips`` does not. Follows a colon."""
    final_reject: ClassVar[str] = ""
    """Name of the reject that stands for all items after a damaged place. It is never retried: the source is as planned."""

    def recognizes(self, url: str) -> bool:
        """Return whether ``url`` is a source of this format, or a part of one."""
        return suffix_of(canonical(url)) in self.suffixes

    def source_url(self, url: str) -> str:
        """The source that a recognized URL belongs to: by default the URL itself."""
        return url

    def open(self, name: str, url: str, parts: list[str]) -> Source:
        """The source at ``url`` with the facts that the plan records. ConfigError if there is none.

        ``parts``: the recognized URLs that belong to the source.
        """
        return Source(name=name, format=self.name, url=url, facts=existing_file_facts(url))

    @abstractmethod
    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut what the source holds beyond the ``planned`` units into units of ``generation``.

        SourceChanged if something that is planned already has changed.
        """

    @abstractmethod
    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield every item of a unit in order. An item that cannot be used carries a ``fault``.

        ``url``: where the source is in this run. ``columns``: the planned user columns. SourceChanged if the source
        is not as planned.
        """

    def some_items(
        self, unit: Unit, ordinals: set[int], url: str, recipe: Recipe, columns: pa.Schema
    ) -> Iterator[Item]:
        """Yield the items with these ordinals, in order. By default all are read and the others dropped."""
        return (item for item in self.items(unit, url, recipe, columns) if item.ordinal in ordinals)

    def num_items(self, unit: Unit) -> int | None:
        """Number of items in a unit; None if only reading the source tells.

        A format that returns None sets ``Item.end_byte``: estimates and progress then go by bytes.
        """
        return None

    def caption_hint(self, source: Source) -> str:
        """Files that lie beside the source and may hold captions, as a part of a sentence; empty if there are none.

        It is requested only if no sample has a caption.
        """
        return ""

    def cost(self, unit: Unit) -> int:
        """How much work a unit is, in a measure that compares units of this format: items, or bytes if not counted."""
        count = self.num_items(unit)
        return unit.size if count is None else count

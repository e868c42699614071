"""Plans a text layer: captions are rendered, each distinct string is planned once, and the map to them is written.

A generation of the plan has the strings that no earlier one has, in the order of their text ids, and the whole map. Both
are a function of the captions alone, so that a job that was killed in between makes the same files again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.output.layers.text_layer import (
    MAP_SCHEMA,
    NULL_ROW_ID,
    TextLayer,
    TextMap,
    strings_digest,
    strings_path,
    text_id,
)
from pipeline.output.plan import freeze_generation, generation_facts, read_plan
from pipeline.sources.units import STRINGS, Plan, Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import parquet_writer, read_parquet, write_parquet
from pipeline.storage.store import Store
from pipeline.text.captions.scores import NumberCheck
from pipeline.text.encoder import TextHandling, TextRenderer
from pipeline.text.id_set import IdSet
from pipeline.text.sample_captions import check_caption_types, read_samples
from pipeline.text.sorted_rows import SortedRows
from stvae.file_identity import sha256_digest

STRING_SCHEMA = pa.schema([("text_id", pa.string()), ("texts", pa.list_(pa.string()))])
"""Columns of the strings of a unit."""
ROWS_PER_PART = 1_000_000
"""Rows of a part of the map."""
IDS_PER_ROW_GROUP = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSource:
    """The captions to embed, and how they become strings."""

    output: Store
    captions: tuple[str, ...]
    """Columns with captions."""
    joins: tuple[str, ...]
    """Parquet files with further columns."""
    handling: TextHandling
    renderer: TextRenderer


class Form(NamedTuple):
    """One form of one caption: a row of the map, and the strings that it becomes."""

    caption: str
    element: int
    """Number of the caption in a list of captions; 0 where there is one."""
    variant: int
    weight: float
    text_id: str
    shown: str | None
    """The form as it is shown to the model, before it is rendered; None if it is the caption itself."""
    texts: tuple[str, ...]


def freeze_text_plan(layer: Store, facts: TextLayer, source: CaptionSource) -> Plan:
    """Record a new generation of the plan if captions are new; the whole plan. Safe to call again."""
    while True:
        plan = read_plan(layer)
        with contextlib.ExitStack() as stack:
            draft = _Draft(layer, facts, plan, partial(_scratch_file, layer, stack))
            draft.fill(source)
            if draft.text_map == draft.newest:
                return plan
            units = draft.write()
            freeze_generation(layer, units, pa.schema([]), len(plan.columns), draft.text_map.to_facts())
        # read the plan back, since another job may have recorded this generation first


class PlanPreview(NamedTuple):
    """The strings of an output, before they are embedded."""

    strings: int
    """Number of forms of captions, over all samples."""
    distinct: int
    """Number of distinct strings, with those of earlier generations."""
    new: int
    """Number of distinct strings that no earlier generation has."""
    new_characters: int
    """Characters of these."""
    row_bytes: int
    """Largest size of an embedding."""
    units: int
    """Number of units that the new strings make."""


def preview_text_plan(
    layer: Store, facts: TextLayer, source: CaptionSource, scratch: Callable[[], Path]
) -> PlanPreview:
    """Count what ``freeze_text_plan`` would plan. Writes nothing but files at the paths of ``scratch``."""
    draft = _Draft(layer, facts, read_plan(layer), scratch)
    draft.fill(source)
    return draft.preview()


def caption_forms(values: dict[str, Any], source: CaptionSource) -> Iterator[Form]:
    """Yield every form of every caption of a sample. ``values``: its columns by name."""
    for name in source.captions:
        texts = values[name]
        texts = [(n, text) for n, text in enumerate(texts if isinstance(texts, list) else [texts]) if text is not None]
        for element, text in texts:
            for number, variant in enumerate(source.handling.variants(text, values)):
                rendered = source.renderer.render(variant.caption)
                shown = None if variant.caption == text else variant.caption
                weight = variant.weight / len(texts)
                yield Form(name, element, number, weight, text_id(rendered), shown, rendered)


@dataclass(slots=True)
class _Draft:
    """A generation of the plan before it is recorded."""

    layer: Store
    facts: TextLayer
    plan: Plan
    scratch: Callable[[], Path]
    """Makes a path for a file on the local disk."""
    newest: TextMap | None = field(default=None, init=False)
    """The map of the newest recorded generation."""
    text_map: TextMap = field(init=False)
    """The map as it should be now."""
    num_strings: int = field(default=0, init=False)
    """Number of rows of the map."""
    _files: list[Path] = field(default_factory=list, init=False)
    """The files of the map."""
    _known: IdSet = field(init=False)
    """Ids of all strings of earlier generations and of this one."""
    _strings: SortedRows = field(init=False)
    """The strings of this generation."""

    def fill(self, source: CaptionSource) -> None:
        """Render all captions, and write the map to the local disk."""
        if self.plan.columns:
            self.newest = TextMap.from_facts(generation_facts(self.layer, len(self.plan.columns) - 1))
        self._known = IdSet(_read_ids(self.layer, self.newest) if self.newest else None)
        self._strings = SortedRows(STRING_SCHEMA, 1, self.scratch)
        self._add_special_strings(source.renderer)
        self._files = [*self._write_map(source), self._write_ids()]
        folder = f"maps/{_digest(self._files)}"
        self.text_map = TextMap(folder=folder, parts=len(self._files) - 1, captions=source.captions)

    def write(self) -> list[Unit]:
        """Write strings and map to the layer; the new units. Names follow from content, so this may be repeated."""
        units = list(self._write_units())
        for path, name in zip(self._files, [*self.text_map.paths, self.text_map.text_ids], strict=True):
            self.layer.put_new(name, path)
            failpoint(Failpoint.MAP_WRITTEN)
        return units

    def preview(self) -> PlanPreview:
        """Count the strings."""
        new = characters = 0
        for portion in self._strings.portions():
            new += portion.num_rows
            characters += sum(len(text) for texts in portion["texts"].to_pylist() for text in texts)
        return PlanPreview(
            strings=self.num_strings,
            distinct=len(self._known),
            new=new,
            new_characters=characters,
            row_bytes=self.facts.card.row_bytes(self.facts.recipe.dtype),
            units=-(-new // self.facts.recipe.unit_strings),
        )

    def _add_special_strings(self, renderer: TextRenderer) -> None:
        """Plan the empty caption, and the null if it is a row of the layer."""
        strings: list[tuple[str, Sequence[str]]] = [(self.facts.empty_id, renderer.render(""))]
        null = self.facts.card.null
        if self.facts.null_id is not None:
            strings.append((self.facts.null_id, renderer.render(null.text) if null.kind == "text" else ()))
        self._add_strings(strings)

    def _add_strings(self, strings: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Plan the strings, given by text id, that no earlier generation and no earlier call has."""
        new = [strings[position] for position in self._known.add([id for id, _ in strings])] if strings else []
        if new:
            ids, texts = zip(*new, strict=True)
            self._strings.add(pa.Table.from_pydict({"text_id": ids, "texts": texts}, schema=STRING_SCHEMA))

    def _write_map(self, source: CaptionSource) -> list[Path]:
        """Write the parts of the map to the local disk, and plan the strings in it."""
        columns = list(dict.fromkeys((*source.captions, *source.handling.columns)))
        files: list[Path] = []
        numbers = NumberCheck(source.handling.number_columns)
        with contextlib.ExitStack() as open_part:
            rows_left = 0
            for samples in read_samples(source.output, columns, source.joins, self.scratch):
                check_caption_types(samples.schema, source.captions)
                rows = samples.to_pylist()
                for row in rows:
                    numbers.add(row)
                forms = [(row["id"], form) for row in rows for form in caption_forms(row, source)]
                self._add_strings([(form.text_id, form.texts) for _, form in forms])
                self.num_strings += len(forms)
                if rows_left < len(forms):
                    open_part.close()
                    files.append(self.scratch())
                    writer = open_part.enter_context(parquet_writer(files[-1], MAP_SCHEMA))
                    rows_left = max(ROWS_PER_PART, len(forms))
                rows_left -= len(forms)
                writer.write_table(_map_rows(forms))
        numbers.end()
        if not files:
            files.append(self.scratch())
            files[0].write_bytes(write_parquet(MAP_SCHEMA.empty_table()))
        return files

    def _write_ids(self) -> Path:
        path = self.scratch()
        schema = pa.schema([("text_id", pa.string())])
        with parquet_writer(path, schema) as writer:
            for ids in self._known.portions(IDS_PER_ROW_GROUP):
                writer.write_table(pa.table({"text_id": ids}, schema=schema))
        return path

    def _write_units(self) -> Iterator[Unit]:
        """Write the strings of every new unit, in the order of their ids, and yield the units."""
        size = self.facts.recipe.unit_strings
        start = sum(len(unit.ordinals) for unit in self.plan.units)
        waiting = STRING_SCHEMA.empty_table()
        for portion in self._strings.portions():
            waiting = pa.concat_tables([waiting, portion])
            while waiting.num_rows >= size:
                yield self._write_unit(waiting.slice(0, size), start)
                start, waiting = start + size, waiting.slice(size)
        if waiting.num_rows:
            yield self._write_unit(waiting, start)

    def _write_unit(self, strings: pa.Table, start: int) -> Unit:
        digest = hashlib.sha256("".join(strings["text_id"].to_pylist()).encode()).hexdigest()[:16]
        content = write_parquet(strings.combine_chunks())
        unit = Unit(
            name=f"text-{digest}",
            source=STRINGS,
            format=STRINGS,
            generation=len(self.plan.columns),
            start=start,
            stop=start + strings.num_rows,
            size=len(content),
            etag=strings_digest(content),
        )
        self.layer.put_new(strings_path(unit.name), content)
        failpoint(Failpoint.STRINGS_WRITTEN)
        return unit


def special_ids(renderer: TextRenderer) -> tuple[str, str | None]:
    """Text ids of the empty caption and of the null; None for a null that the layer does not have."""
    null = renderer.card.null
    by_kind = {"text": text_id(renderer.render(null.text)), "row": NULL_ROW_ID, "checkpoint": None}
    return text_id(renderer.render("")), by_kind[null.kind]


def _scratch_file(layer: Store, stack: contextlib.ExitStack) -> Path:
    return stack.enter_context(layer.scratch())


def _map_rows(forms: list[tuple[str, Form]]) -> pa.Table:
    rows = [(id, *form[:-1]) for id, form in forms]
    columns = zip(*rows, strict=True) if rows else [()] * len(MAP_SCHEMA)
    return pa.Table.from_pydict(dict(zip(MAP_SCHEMA.names, columns, strict=True)), schema=MAP_SCHEMA)


def _read_ids(layer: Store, text_map: TextMap) -> Any:
    """The ids of a generation, which are sorted, as ``S10``."""
    column = read_parquet(layer.get(text_map.text_ids))["text_id"]
    return np.concatenate([np.frombuffer(bytes.fromhex("".join(c.to_pylist())), dtype="S10") for c in column.chunks])


def _digest(files: Sequence[Path]) -> str:
    """16 hex digits of a hash over the content of files in their order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(sha256_digest(file))
    return digest.hexdigest()[:16]

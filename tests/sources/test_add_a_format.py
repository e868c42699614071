"""Follows "Add a source format" in pipeline/sources/README.md with a toy: a text file that names a video per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import estimate
from pipeline.dry_run.table import format_estimate
from pipeline.errors import Rejected, SourceChanged
from pipeline.progress.work import work_by_unit
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import FORMATS, format_of, plan_units
from pipeline.sources.item import Item
from pipeline.sources.retrying_file import read_whole
from pipeline.sources.sidecar_files import read_sidecars
from pipeline.sources.sidecars import add_sidecars
from pipeline.sources.source_format import NewUnits, SourceFormat
from pipeline.sources.units import Plan, Source, Unit, check_facts_as_planned, check_file_as_planned, new_unit
from pipeline.sources.url_policy import key_of, location_of
from pipeline.storage.urls import canonical
from stvae import Card
from tests.sources.test_sources import read_items
from tests.support.oracle import assert_sound
from tests.support.painted import SIZE, assert_together, painted, write_video


class ListFormat(SourceFormat):
    """A text file with the path of a video in every line. Paths are relative to the file."""

    name = "list"
    suffixes = frozenset({"list"})

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """Cut a list that is not planned yet into ranges of lines."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        count = len(read_whole(source.url, source.facts.size).splitlines())
        starts = range(0, count, recipe.unit_clips)
        stops = [min(start + recipe.unit_clips, count) for start in starts]
        return NewUnits(
            units=[new_unit(source, generation, start=a, stop=b) for a, b in zip(starts, stops, strict=True)]
        )

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per line of the unit."""
        check_file_as_planned(unit, url)
        lines = read_whole(url, unit.size).decode().splitlines()
        for ordinal in unit.ordinals:
            item = Item(ordinal=ordinal, key=key_of(lines[ordinal], url), uri="", trusted=False)
            try:
                item.location = location_of(lines[ordinal], url)
                item.uri = canonical(item.location)
                add_sidecars(item, read_sidecars(item.location), recipe)
            except Rejected as rejected:
                item.fault = rejected.reject
            yield item

    def num_items(self, unit: Unit) -> int | None:
        """Number of lines in the unit."""
        return len(unit.ordinals)


class UncountedListFormat(ListFormat):
    """The same file, read like a stream: planning does not count its lines."""

    def plan(self, source: Source, planned: list[Unit], recipe: Recipe, generation: int) -> NewUnits:
        """One unit for a list that is not planned yet."""
        if planned:
            check_facts_as_planned(source, planned[0])
            return NewUnits()
        return NewUnits(units=[new_unit(source, generation, start=0, stop=None)])

    def items(self, unit: Unit, url: str, recipe: Recipe, columns: pa.Schema) -> Iterator[Item]:
        """Yield an item per line, with the byte where the line ends."""
        lines = read_whole(url, unit.size).decode().splitlines(keepends=True)
        counted = dataclasses.replace(unit, stop=len(lines))
        end_byte = 0
        for item, line in zip(super().items(counted, url, recipe, columns), lines, strict=True):
            end_byte += len(line.encode())
            item.end_byte = end_byte
            yield item

    def num_items(self, unit: Unit) -> int | None:
        """None: only reading tells."""
        return None


@pytest.fixture(params=[ListFormat, UncountedListFormat], ids=["counted", "uncounted"])
def source_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SourceFormat:
    """A toy format, registered for one test."""
    toy: SourceFormat = request.param()
    monkeypatch.setitem(FORMATS, toy.name, toy)
    return toy


def write_list(folder: Path, count: int) -> Path:
    """A list of painted videos, numbered from 0."""
    names = [f"videos/{number:03d}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        write_video(folder / name, number, num_frames=17)
    path = folder / "my.list"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_a_new_format_is_found_planned_and_read(tmp_path: Path, recipe: Recipe, source_format: SourceFormat) -> None:
    path = write_list(tmp_path, 10)
    found = read_items(tmp_path, recipe, str(path))
    assert [(item.ordinal, item.key, item.caption) for item in found] == [
        (number, f"videos/{number:03d}.mp4", f"number {number}") for number in range(10)
    ]
    sources = find_sources([f"train={path}"])
    units, _ = plan_units(Plan(units=[], columns=[]), sources, recipe)
    assert (sources[0].name, sources[0].format) == ("train", "list")
    assert format_of(units[0]) is source_format and sum(work_by_unit(units).values()) == len(units)
    plan = Plan(units=units, columns=[pa.schema([])])
    assert plan_units(plan, sources, recipe)[0] == []
    path.write_text("another.mp4\n")
    with pytest.raises(SourceChanged, match="source train was"):
        plan_units(plan, find_sources([f"train={path}"]), recipe)


def test_a_bad_line_is_a_reject_of_its_item(tmp_path: Path, recipe: Recipe, source_format: SourceFormat) -> None:
    (tmp_path / "my.list").write_text("a.mp4\npipe://cat x\n")
    first, second = read_items(tmp_path, recipe, str(tmp_path / "my.list"))
    assert first.fault is None and second.fault is not None and second.fault.reason == "forbidden_url"


def test_a_new_format_is_estimated_and_encoded(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card, source_format: SourceFormat
) -> None:
    recipe = dataclasses.replace(recipe, buckets=(Bucket(17, *SIZE),), micro_batch=(2,))
    run = dataclasses.replace(run, sources=(str(write_list(tmp_path, 40)),))
    with painted():
        part = estimate(recipe, run, tiny_card, 8, lambda _: None)
        whole = estimate(recipe, run, tiny_card, None, lambda _: None)
        summary = encode(recipe, run, tiny_card, lambda _: None)
    num_items, _ = part.sample.num_items
    assert (
        num_items == pytest.approx(40, rel=0.1)
        and not part.sample.is_complete
        and "items" in format_estimate(part, None, "")
    )
    assert whole.sample.is_complete and len(whole.sample.observations) == summary.counts.samples == 40
    rows = assert_sound(Path(run.output))
    assert_together(rows, Path(run.output))
    assert sorted(row["key"] for row in rows) == [f"videos/{number:03d}.mp4" for number in range(40)]

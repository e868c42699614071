"""Names of units and ids of samples never change: an output that grows or resumes depends on them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.output.rows import sample_id
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import format_of, items, plan_units
from pipeline.sources.units import Plan, Unit
from tests.sources.test_sources import write_tar

FIRST_IDS = {
    "my-clips-317c809feca9ea0d": "6c61d0cfec5f5bce9dfe",
    "m-55e96936da96a22b": "13a25e87b8397e7b0eb5",
    "m-f2e7b8d46010de47": "09d35d6c612eeb344f14",
    "m-2e058b0822154484": "e3bf3657226ca760ef06",
    "m-979c8389aec7f087": "ba40cab8c3563c74dbd2",
    "m-ec4ebb4d7d17e01f": "093c89c14f796a6bcbf5",
    "m-c4b694983b5b74d3": "a7fde549b4204ec2d5a2",
    "f-71be049fc847aa83": "a4d1c722de69ba0a57a2",
    "f-0355041701fa0ac8": "b227c20fa358d1436ad6",
    "g-27ae5c2569bd3c61": "a9c4090141412ece8214",
    "g-1c4b16267ef6b7ee": "c8d08f1f8d094bd86f40",
}


def write_dataset(folder: Path) -> list[str]:
    """A tar, three manifests and a folder of six small files; the ``--source`` arguments that name them."""
    (folder / "v").mkdir()
    for i in range(6):
        (folder / "v" / f"{i}.mp4").write_bytes(b"x" * i)
    write_tar(folder / "My Clips.tar", [(f"k{i}.mp4", b"abcd") for i in range(3)])
    rows = [{"path": f"v/{i}.mp4", "n": i} for i in range(6)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "m.csv").write_text("path,n\n" + "".join(f"v/{i}.mp4,{i}\n" for i in range(6)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    names = {"tars": "My Clips.tar", "j": "m.jsonl", "c": "m.csv", "p": "m.parquet", "f": "v", "g": "v/{0..4}.mp4"}
    return [f"{name}={folder}/{path}" for name, path in names.items()]


def test_names_of_units_and_ids_of_samples_are_those_of_the_first_release(tmp_path: Path, recipe: Recipe) -> None:
    sources = find_sources(write_dataset(tmp_path))
    units, columns = plan_units(Plan(units=[], columns=[]), sources, recipe)
    urls = {source.name: source.url for source in sources}
    first = {unit.name: next(items(unit, urls[unit.source], recipe, columns)) for unit in units}
    assert {unit.name: sample_id(unit, first[unit.name], 0) for unit in units} == FIRST_IDS
    assert [format_of(unit).num_items(unit) for unit in units] == [None, *[4, 2] * 4, 4, 1]


def test_what_planning_knows_of_units_is_their_number_of_items_and_their_cost(tmp_path: Path, recipe: Recipe) -> None:
    tar, *manifests, folder, rest, given, last = plan_units(
        Plan(units=[], columns=[]), find_sources(write_dataset(tmp_path)), recipe
    )[0]
    assert format_of(tar).cost(tar) == os.path.getsize(tmp_path / "My Clips.tar")
    assert [format_of(unit).cost(unit) for unit in manifests] == [4, 2] * 3
    assert [format_of(unit).cost(unit) for unit in (folder, rest, given, last)] == [0 + 1 + 2 + 3, 4 + 5, 6, 4]


@pytest.mark.parametrize("ordinals", [set(), {0}, {5}, {4, 5}])
def test_some_items_are_the_ones_with_these_ordinals(tmp_path: Path, recipe: Recipe, ordinals: set[int]) -> None:
    sources = find_sources(write_dataset(tmp_path))
    units, columns = plan_units(Plan(units=[], columns=[]), sources, recipe)
    urls = {source.name: source.url for source in sources}
    for unit in units:
        every = [item for item in items(unit, urls[unit.source], recipe, columns) if item.ordinal in ordinals]
        if wanted := ordinals & {item.ordinal for item in every}:
            assert list(format_of(unit).some_items(unit, wanted, urls[unit.source], recipe, columns)) == every


def test_a_unit_of_an_unknown_format_is_refused_by_name() -> None:
    unit = Unit(name="u-1", source="s", format="zip", generation=0, start=0, stop=None)
    with pytest.raises(ConfigError, match=r"format 'zip', which .* it knows tar, manifest, lance, lerobot, folder"):
        format_of(unit)

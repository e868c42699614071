"""The index is made range by range: the same bytes wherever that happens, and only the ranges that have changed."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.verify_dataset import main as verify_dataset
from pipeline.executor.ray_map import map_on_ray
from pipeline.loader import LatentDataset
from pipeline.output.index import Index, newest_index
from pipeline.output.index_builder import compact_index, complete_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.layout.own_files import stray_files
from pipeline.output.plan import freeze_generation, read_plan
from pipeline.output.ranges import cut
from pipeline.output.ranges.cut import cut_into_ranges
from pipeline.output.ranges.orphans import orphan_parts, remove_orphan_parts
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.output.verify import verify
from pipeline.sources.units import Plan, Retry, Unit
from pipeline.storage.concurrency import MapTasks, map_in_process
from pipeline.storage.store import Store
from tests.support.captioned_set import COLUMNS, RECIPE, VIDEO_BUCKET, Captions, add_unit
from tests.support.oracle import tree


def unit(start: int, generation: int = 0, source: str = "s", retries: bool = False) -> Unit:
    name = f"{source}{start:06d}-{generation}"
    again = (Retry(ordinal=start, windows=()),) if retries else ()
    return Unit(
        name=name, source=source, format="folder", generation=generation, start=start, stop=start + 1, retries=again
    )


def ranges_of(units: list[Unit]) -> list[list[str]]:
    plan = Plan(units=random.sample(units, len(units)), columns=[])
    return [[unit.name for unit in each.units] for each in cut_into_ranges(plan, {})]


def test_a_plan_is_cut_into_runs_in_source_order() -> None:
    units = [unit(n, source=source) for source in "ab" for n in range(1250)]
    found = ranges_of(units)
    assert [len(each) for each in found] == [1000, 1000, 500]
    assert [name for each in found for name in each] == [unit.name for unit in units]


def test_units_that_try_again_are_in_the_range_of_their_items() -> None:
    units = [unit(n) for n in range(1500)]
    before = ranges_of(units)
    after = ranges_of([*units, unit(3, 1, retries=True), unit(3, 2, retries=True)])
    assert after[1:] == before[1:] and len(after[0]) == 1002
    assert after[0][3:6] == ["s000003-0", "s000003-1", "s000003-2"]


def test_a_growing_plan_keeps_full_ranges_and_has_few_small_ones() -> None:
    """However a plan has grown, each growth makes few new ranges, with few units on average."""
    generator = random.Random(1)
    units: list[Unit] = []
    before: list[list[str]] = []
    remade = 0
    for generation in range(150):
        start = len(units)
        growth = generator.randint(1, 60)
        units += [unit(n, generation, source=generator.choice("ab")) for n in range(start, start + growth)]
        found = ranges_of(units)
        assert sorted(name for each in found for name in each) == sorted(unit.name for unit in units)
        assert sum(len(each) < cut.UNITS_PER_RANGE for each in found) <= 11
        assert all(each in found for each in before if len(each) == cut.UNITS_PER_RANGE)
        remade += sum(len(each) for each in found if each not in before)
        before = found
    assert remade < 10 * len(units)
    assert ranges_of([unit(n) for n in range(1000)] + [unit(n, 1) for n in range(1000, 1100)]) == [
        [f"s{n:06d}-0" for n in range(1000)],
        [f"s{n:06d}-1" for n in range(1000, 1100)],
    ]


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "UNITS_PER_RANGE", 2)


@pytest.fixture
def output(tmp_path: Path, small_ranges: None) -> Path:
    """Seven units of three samples without an index, in the two buckets; ranges have up to two of them."""
    folder = tmp_path / "out"
    write_units(folder, [(0, 7)])
    return folder


def write_units(folder: Path, generations: Sequence[tuple[int, int]]) -> None:
    """Add units, given as the numbers of each generation, to an output. Its plan is frozen again for each generation."""
    scratch = folder.with_name("scratch")
    for first, stop in generations:
        store, number = Store(str(folder)), len(read_plan(Store(str(folder))).columns)
        units = []
        for n in range(first, stop):
            shutil.rmtree(scratch, ignore_errors=True)
            _write_unit_alone(scratch, n)
            (made,) = read_plan(Store(str(scratch))).units
            units.append(dataclasses.replace(made, name=f"n{n:06d}", start=3 * n, stop=3 * n + 3, generation=number))
            _take_over(scratch, folder, made.name, units[-1])
        freeze_generation(store, units, COLUMNS, number)


def _write_unit_alone(folder: Path, number: int) -> None:
    captions = [Captions(f"caption {number} {n}") for n in range(2)] + [Captions("video", bucket=VIDEO_BUCKET)]
    add_unit(folder, captions, RECIPE, first_key=3 * number)


def _take_over(scratch: Path, folder: Path, name: str, unit: Unit) -> None:
    """Copy the only unit of an output into another one, under another name and with ids of its own."""
    for kind in ("shards", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(scratch / "dataset.json", folder)
    table = pq.read_table(scratch / unit_metadata_path(name))
    (shard,) = (scratch / "shards").iterdir()
    moved = f"shards/{unit.name}{shard.name.removeprefix(name)}"
    shutil.copy(shard, folder / moved)
    rows = len(table)
    for column, values in {
        "id": [f"{unit.start + n:020x}" for n in range(rows)],
        "ordinal": list(range(unit.start, unit.start + rows)),
        "shard": [moved] * rows,
    }.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    facts = table.schema.metadata | {b"unit": unit.name.encode(), b"shard": moved.encode()}
    pq.write_table(table.replace_schema_metadata(facts), folder / unit_metadata_path(unit.name))


def index_of(folder: Path, map_tasks: MapTasks = map_in_process) -> Index:
    store = Store(str(folder))
    plan = read_plan(store)
    return complete_index(store, plan, clip_rows(plan, RECIPE), map_tasks)


def map_elsewhere(work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Run tasks as a cluster may: on copies, twice, and in another order."""
    for item in reversed(items):
        for _ in range(2):
            copy, copied_item = pickle.loads(pickle.dumps((work, item)))  # noqa: S301
            result = json.loads(json.dumps(copy(copied_item)))
        yield result


def metadata_reads(folder: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the unit metadata that is read during ``work``."""
    read: list[str] = []
    get = Store.get

    def noted(store: Store, path: str) -> bytes:
        read.append(path)
        return get(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", noted)
        work()
    return sorted(path for path in read if path.startswith("metadata/"))


def problems_of(folder: Path, map_tasks: MapTasks = map_in_process) -> list[tuple[str, str]]:
    return verify(Store(str(folder)), lambda line: None, map_tasks).problems


def test_an_index_is_the_same_bytes_wherever_its_ranges_are_made(output: Path) -> None:
    index = index_of(output)
    assert len(index.ranges) == 4 and len(index.samples) == 8 and index.num_samples == 21
    before = tree(output)
    for map_tasks in (map_elsewhere, partial(map_on_ray, "local")):
        shutil.rmtree(output / "index")
        assert index_of(output, map_tasks) == index and tree(output) == before
    assert problems_of(output, map_elsewhere) == []
    assert stray_files(Store(str(output))) == []


def test_a_grown_output_takes_over_the_parts_of_its_ranges(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_of(output)
    write_units(output, [(7, 8)])
    read = metadata_reads(output, lambda: index_of(output), monkeypatch)
    assert read == ["metadata/n000007.0.parquet"], "units of earlier ranges are read again"
    second = newest_index(Store(str(output)))
    assert second is not None and second.generation == 1 and second.num_samples == 24
    assert first.ranges.items() < second.ranges.items() and set(first.samples) < set(second.samples)
    assert [bucket_of(output, path) for path in second.samples] == ["1x16x16"] * 5 + ["17x16x24"] * 5
    assert problems_of(output) == []
    assert len(LatentDataset(str(output))) == 24 and len(LatentDataset(str(output), version="index=0")) == 21


def bucket_of(output: Path, path: str) -> str:
    (bucket,) = set(pq.read_table(output / path, columns=["bucket"])["bucket"].to_pylist())
    height, width, frames = bucket.split("x")
    return f"{frames}x{height}x{width}"


def test_small_ranges_are_merged_and_the_index_follows_from_the_plan(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "UNITS_PER_RANGE", 1000)
    sizes = []
    for first in range(7, 12):
        write_units(output, [(first, first + 1)])
        sizes.append(len(index_of(output).ranges))
    assert sizes == [2, 3, 2, 3, 4]
    index = index_of(output)
    assert problems_of(output) == []
    for path in (output / "index").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = index_of(output, map_elsewhere)
    assert dataclasses.replace(again, generation=index.generation) == index


def test_a_revised_unit_makes_only_its_range_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_of(output)
    table = pq.read_table(output / "metadata" / "n000002.0.parquet")
    facts = table.schema.metadata | {b"num_samples": b"2"}
    revised = table.filter(pc.not_equal(table["ordinal"], 6)).replace_schema_metadata(facts)
    pq.write_table(revised, output / "metadata" / "n000002.1.parquet")
    (where, what), *_ = [problem for problem in problems_of(output) if "as they are now" in problem[1]]
    assert where == first.path and "2 units from n000002 to n000003" in what
    store, plan = Store(str(output)), read_plan(Store(str(output)))
    read = metadata_reads(output, lambda: compact_index(store, plan, clip_rows(plan, RECIPE), 1), monkeypatch)
    assert read == ["metadata/n000002.1.parquet", "metadata/n000003.0.parquet"]
    second = newest_index(store)
    assert second is not None and (second.generation, second.num_samples) == (1, 20)
    assert len(set(first.ranges.values()) - set(second.ranges.values())) == 1
    assert problems_of(output) == [] and index_of(output) == second


def test_what_a_killed_job_has_made_is_not_made_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(output)
    before = tree(output)
    (output / index.path).unlink()
    (record,) = (output / "index" / "ranges").glob(f"{list(index.ranges)[1]}-*.json")
    record.unlink()
    read = metadata_reads(output, lambda: index_of(output), monkeypatch)
    assert read == ["metadata/n000002.0.parquet", "metadata/n000003.0.parquet"]
    assert tree(output) == before


def test_parts_that_are_gone_are_made_again(output: Path) -> None:
    index = index_of(output)
    before = tree(output)
    (output / index.path).unlink()
    (output / index.samples[0]).unlink()
    assert index_of(output) == index and tree(output) == before


def test_parts_that_no_index_names_are_removed(output: Path) -> None:
    index = index_of(output)
    store = Store(str(output))
    before = tree(output)
    part = (output / index.samples[0]).read_bytes()
    left = ["index/0badc0de0badc0de/samples-00000.parquet", "index/ranges/0badc0de0badc0de-0badc0de.json"]
    for path in left:
        store.put_new(path, part)
    assert sorted(orphan_parts(store)) == left
    write_units(output, [(7, 8)])
    remove_orphan_parts(store)
    assert sorted(orphan_parts(store)) == left, "they may be those of an index that another job is making"
    index_of(output)
    remove_orphan_parts(store)
    assert orphan_parts(store) == [] and before.items() < tree(output).items(), "earlier indexes keep their parts"
    assert not (output / left[0]).parent.exists()


def test_tasks_on_ray_find_the_same_damage(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(output)
    monkeypatch.setattr("pipeline.output.verify.UNITS_PER_TASK", 2)
    shards = sorted((output / "shards").iterdir())
    for shard in (shards[1], shards[5]):
        shard.write_bytes(shard.read_bytes()[:-1])
    (output / index.samples[2]).unlink()
    found = []
    for flags in (["--local"], ["--ray-address", "local"]):
        assert verify_dataset([str(output), *flags]) == 1
        found.append((output / "verify.json").read_bytes())
    assert found[0] == found[1]
    assert "7 units, 7 shards, 21 samples" in capsys.readouterr().out
    problems = [path for path, _ in json.loads(found[0])["problems"]]
    assert problems[:2] == [f"shards/{shards[1].name}"] * 2 and index.samples[2] in problems


def test_an_index_that_lags_behind_the_plan_is_a_problem(output: Path) -> None:
    index = index_of(output)
    write_units(output, [(7, 8)])
    assert problems_of(output) == [
        (index.path, "it has 1 of 2 generations of the plan: run the job again"),
        (index.shards, "does not list the committed shards"),
    ]

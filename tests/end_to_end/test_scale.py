"""Memory for planning, resuming, finishing and verifying an output must not grow with the output."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.output import index_parts as parts
from pipeline.output.index import Index
from pipeline.output.index_builder import build_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.plan import read_plan
from pipeline.output.ranges import build
from pipeline.output.verify import verify
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources import manifest as manifests
from pipeline.sources.file_table import Files
from pipeline.sources.manifest import parquet_rows, text_rows
from pipeline.storage import concurrency as parallel
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.store import Store
from pipeline.storage.urls import FileFacts
from stvae import Card
from tests.bench.scale import make_output, recipe_of
from tests.support.oracle import ORDER
from tests.support.painted import SIZE, painted, write_video

ITEMS = 20
"""Items per unit: in three buckets, every tenth a skip, one a reject."""
POOLS: list[pa.MemoryPool] = []
"""Kept here, because a pool must outlive what was allocated in it."""


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that a few rows exceed them."""
    monkeypatch.setattr(parallel, "REQUESTS", 2)
    monkeypatch.setattr(build, "ROWS_AT_ONCE", 2 * ITEMS)
    monkeypatch.setattr(parts, "ROWS_WAITING", 5 * ITEMS)
    monkeypatch.setattr(parts, "ROWS_PER_PART", 50)


def indexed(folder: Path, units: int) -> Index:
    make_output(folder, units * ITEMS, units)
    return index_of(Store(str(folder)))


def index_of(store: Store) -> Index:
    plan = read_plan(store)
    return build_index(store, plan, clip_rows(plan, recipe_of(ITEMS)))


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak of the bytes that Arrow held during ``work``."""
    before = pa.default_memory_pool()
    POOLS.append(pa.proxy_memory_pool(before))
    pa.set_memory_pool(POOLS[-1])
    try:
        work()
        return int(POOLS[-1].max_memory())
    finally:
        pa.set_memory_pool(before)


def rows_of(folder: Path, paths: list[str]) -> list[dict[str, object]]:
    return [row for path in paths for row in pq.read_table(folder / path).to_pylist()]


def test_four_times_the_units_finish_and_verify_in_the_same_memory(tmp_path: Path, small_limits: None) -> None:
    peaks: dict[int, list[int]] = {}
    for units in (30, 120):
        folder = tmp_path / str(units)
        make_output(folder, units * ITEMS, units)
        store = Store(str(folder))
        plan = read_plan(store)
        peaks[units] = [
            peak_bytes(lambda s=store, p=plan: build_index(s, p, clip_rows(p, recipe_of(ITEMS)))),
            peak_bytes(lambda s=store: verify(s, lambda line: None)),
        ]
    for small, large in zip(peaks[30], peaks[120], strict=True):
        assert large < 1.5 * small, peaks


def test_parts_of_an_index_are_in_order_and_no_longer_than_they_may_be(tmp_path: Path, small_limits: None) -> None:
    index = indexed(tmp_path, 30)
    for paths, first in ((index.samples, ["bucket"]), (index.rejects, []), (index.skips, [])):
        rows = rows_of(tmp_path, paths)
        order = [tuple(row[name] for name in [*first, *ORDER]) for row in rows]
        assert order == sorted(order) and len(set(order)) == len(order)
    sizes = [pq.read_metadata(tmp_path / path).num_rows for path in index.samples]
    assert len(sizes) > 10 and max(sizes) == 50
    assert all(len({row["bucket"] for row in rows_of(tmp_path, [path])}) == 1 for path in index.samples)
    assert index.num_samples + index.num_rejects + index.num_skips == 30 * ITEMS


def test_an_index_has_the_same_rows_however_few_are_held_at_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = indexed(tmp_path, 12)
    assert len(whole.samples) == 3
    (tmp_path / "index" / "0000.json").unlink()
    request.getfixturevalue("small_limits")
    cut = index_of(Store(str(tmp_path)))
    for a, b in ((whole.samples, cut.samples), (whole.rejects, cut.rejects), (whole.skips, cut.skips)):
        assert a != b and rows_of(tmp_path, a) == rows_of(tmp_path, b)


def test_an_index_is_the_same_bytes_however_unit_metadata_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = indexed(tmp_path, 12)
    shutil.rmtree(tmp_path / "index")
    monkeypatch.setattr(parallel, "REQUESTS", 1)
    assert index_of(Store(str(tmp_path))) == index


def test_a_row_of_the_index_that_differs_is_named_with_its_columns(tmp_path: Path) -> None:
    index = indexed(tmp_path, 3)
    store = Store(str(tmp_path))
    assert verify(store, lambda line: None).problems == []
    table = pq.read_table(tmp_path / index.samples[1])
    captions = ["another", *table["caption"].to_pylist()[1:]]
    place = table.column_names.index("caption")
    pq.write_table(table.set_column(place, "caption", pa.array(captions)), tmp_path / index.samples[1])
    row = table.slice(0, 1).to_pylist()[0]
    what = f"the row of {row['id']} ({row['key']}) differs in caption"
    assert verify(store, lambda line: None).problems == [("index/0000.json", what)]


def test_rows_that_move_between_parts_since_others_are_missing_are_not_said_to_be_missing(
    tmp_path: Path, small_limits: None
) -> None:
    index = indexed(tmp_path, 12)
    store = Store(str(tmp_path))
    first = min(read_plan(store).units, key=lambda unit: unit.start)
    rows = pq.read_table(tmp_path / "metadata" / f"{first.name}.0.parquet")
    (tmp_path / "metadata" / f"{first.name}.0.parquet").unlink()
    found = [
        (where, what) for where, what in verify(store, lambda line: None).problems if "in no unit metadata" in what
    ]
    assert sorted(found) == sorted(
        ("index/0000.json", f"{name} is in no unit metadata") for name in rows["id"].to_pylist()
    )
    assert len(index.samples) > 3


def test_a_finished_output_is_looked_at_again_without_reading_unit_metadata(tmp_path: Path, tiny_card: Card) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=2)
    run = Run(output=str(tmp_path / "out"), vae="", sources=(str(tmp_path / "videos"),), local=True, cpus=1)
    read: list[str] = []
    get = Store.get

    def noted(store: Store, path: str) -> bytes:
        read.append(path)
        return get(store, path)

    with painted(), mock.patch.object(Store, "get", noted):
        encode(recipe, run, tiny_card, say=lambda line: None)
        assert sum(path.startswith("metadata/") for path in read) == 3
        read.clear()
        summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert summary.counts.samples == 6 and read and not [path for path in read if path.startswith("metadata/")]


def test_requests_stay_only_slightly_ahead_of_the_reader() -> None:
    begun: list[int] = []
    answers = map_concurrently(lambda n: begun.append(n) or n, range(10_000))  # type: ignore[func-returns-value]
    assert [next(answers) for _ in range(5)] == list(range(5))
    answers.close()  # type: ignore[attr-defined]
    assert len(begun) < 5 * parallel.REQUESTS


def test_an_error_is_raised_in_the_order_of_its_request() -> None:
    def halve(n: int) -> float:
        return 1 / (n - 3)

    answers: Iterator[float] = map_concurrently(halve, range(9))
    assert len([next(answers) for _ in range(3)]) == 3
    with pytest.raises(ZeroDivisionError):
        next(answers)


def test_files_that_are_new_or_changed_are_found_among_those_planned() -> None:
    facts = [FileFacts(size=n, etag=f"e{n}") for n in range(6)]
    planned = Files.concat([Files.of([("b", facts[1])]), Files.of([("d", facts[3]), ("f", facts[5])])])
    found = Files.of(list(zip("abcdef", facts, strict=True)))
    new, changed = found.changes_since(planned)
    assert [file.path for file in new] == ["a", "c", "e"] and changed is None and new.size_bytes == 6
    assert planned.changes_since(planned) == (Files(), None)
    _, changed = Files.of([("a", facts[0]), ("d", dataclasses.replace(facts[3], etag="new"))]).changes_since(planned)
    assert changed is not None and [file.facts.etag for file in changed] == ["e3", "new"]


def test_a_local_folder_is_listed_in_the_order_of_paths(tmp_path: Path) -> None:
    paths = ["a-b", "a.b", "a/b", "a/b.c/d", "a/b-c", "a0", "ä", "b/c"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    assert list(Store(str(tmp_path)).list_files("")) == sorted(paths)


def test_a_listing_of_several_pages_is_whole(s3: str) -> None:
    store = Store(s3)
    paths = [f"metadata/{n:04d}.parquet" for n in range(1003)]
    list(map_concurrently(lambda path: store.put(path, path.encode()), paths))
    store.put("metadata/", b"")  # as consoles make folders
    assert list(store.list_files("metadata")) == paths


def survey_in_blocks(tmp_path: Path, name: str, lines: list[str]) -> manifests.Survey:
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    with mock.patch.object(text_rows, "PARSED_BYTES", 1):
        return manifests.survey(str(tmp_path / name), 2)


def test_a_manifest_read_in_blocks_has_types_that_hold_every_row(tmp_path: Path) -> None:
    lines = ["path,a,b,c,d", "x,1,,true,1", "y,2,,false,2", "z,1.5,3,maybe,3", 'w,2,4,"no\n""way""",4', "v,3,5,1,5"]
    survey = survey_in_blocks(tmp_path, "m.csv", lines)
    assert [str(survey.schema.field(name).type) for name in "abcd"] == ["double", "int64", "string", "int64"]
    assert [(part.start, part.stop) for part in survey.slices] == [(0, 2), (2, 4), (4, 5)]
    types = pa.schema([field for field in survey.schema if field.name != "path"])
    read = [
        row
        for part in survey.slices
        for row in manifests.rows(
            str(tmp_path / "m.csv"), part, survey.header, types, (tmp_path / "m.csv").stat().st_size
        )
    ]
    assert [row["c"] for row in read] == ["true", "false", "maybe", 'no\n"way"', "1"]
    assert [row["a"] for row in read] == [1.0, 2.0, 1.5, 2.0, 3.0]
    rows = [
        {"path": "x", "a": 1, "t": "2024-01-01"},
        {"path": "y"},
        {"path": "z", "a": 1.5, "t": "soon", "n": {"k": 1}},
    ]
    survey = survey_in_blocks(tmp_path, "m.jsonl", [json.dumps(row) for row in rows])
    assert [str(field.type) for field in survey.schema] == ["string", "double", "string", "struct<k: int64>"]


def test_a_manifest_whose_rows_disagree_is_refused_by_its_column(tmp_path: Path) -> None:
    rows = [{"path": "x", "a": 1}, {"path": "y"}, {"path": "z", "a": "one"}]
    with pytest.raises(ConfigError, match=r"column 'a' is int64 in some rows and string in others"):
        survey_in_blocks(tmp_path, "m.jsonl", [json.dumps(row) for row in rows])


@pytest.mark.parametrize("row_group_size", [1, 3, 10, 100])
def test_slices_of_a_parquet_manifest_are_its_rows(
    tmp_path: Path, row_group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 4)
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": list(range(25))}), path, row_group_size=row_group_size)
    found = [
        [row["path"] for row in manifests.rows(str(path), part, "", pa.schema([]), path.stat().st_size)]
        for part in manifests.survey(str(path), 6).slices
    ]
    assert found == [list(range(start, min(start + 6, 25))) for start in range(0, 25, 6)]

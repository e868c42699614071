"""Pieces of videos that the rows of a manifest name."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import plan_units
from pipeline.sources.manifest.ranges import BadRange, holds_pairs, parse_ranges
from pipeline.sources.manifest.repeats import Repeats
from pipeline.sources.units import Plan
from tests.sources.test_sources import planned, read_items


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([0.5, 2], [(0.5, 2.0)]),
        (["0.5", "2"], [(0.5, 2.0)]),
        (["00:00:01.250", "1:59:00"], [(1.25, 7140.0)]),
        (["01:02.5", "90:00"], [(62.5, 5400.0)]),
        (["00:00:01,250", "00:00:02,000"], [(1.25, 2.0)]),
        (["1.5s", "2s"], [(1.5, 2.0)]),
        ([None, 2.0], [(0.0, 2.0)]),
        ([2.0, None], [(2.0, None)]),
        ([None, None], [None]),
        (["", ""], [None]),
        ([[0, 1.5]], [(0.0, 1.5)]),
        ([[[0, 1], [2, 3]]], [(0.0, 1.0), (2.0, 3.0)]),
        (["[('00:00:01.234','00:00:02.345'), ('00:00:03', '00:00:04')]"], [(1.234, 2.345), (3.0, 4.0)]),
        (["[['0:00:00.000', '0:00:00.400']]"], [(0.0, 0.4)]),
        (["['0:00:05.5', '0:00:10']"], [(5.5, 10.0)]),
        (["[0.0, 4.2]"], [(0.0, 4.2)]),
        (["[[0.0, null]]"], [(0.0, None)]),
        (["0.5-2"], [(0.5, 2.0)]),
        (["00:00:01 --> 00:00:02.5"], [(1.0, 2.5)]),
        (["(1, 2)"], [(1.0, 2.0)]),
        ([["0-1", "2-3"]], [(0.0, 1.0), (2.0, 3.0)]),
        ([[{"start": 0, "end": 1}, {"start": 2, "end": None}]], [(0.0, 1.0), (2.0, None)]),
        ([{"start_time": "0:01", "end_time": "0:02"}], [(1.0, 2.0)]),
        ([None], [None]),
    ],
)
def test_places_of_a_video_are_read(cells: list[Any], expected: list[Any]) -> None:
    assert parse_ranges(cells, "seconds") == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([2.0, 1.0], "ends at 1, which is not after its start at 2"),
        ([1.0, 1.0], "not after its start"),
        ([-1.0, 1.0], "not a time from 0 on"),
        ([float("nan"), 1.0], "not a time from 0 on"),
        (["soon", 1.0], "'soon' is not a time"),
        ([True, 2], "'True' is not a time"),
        ([[]], "an empty list"),
        (["[]"], "an empty list"),
        ([[[1, 2], [3]]], "not a pair"),
        (["[1, 2"], "not a start and an end"),
        (["[" * 5000], "not a start and an end"),
        ([7], "not a start and an end"),
        ([{"from": 1}], "not start and end"),
        ([[[0, 1]] * 100_001], "the limit is 100000"),
    ],
)
def test_bad_places_are_refused_with_the_reason(cells: list[Any], message: str) -> None:
    with pytest.raises(BadRange, match=message):
        parse_ranges(cells, "seconds")


def test_frame_numbers_are_whole() -> None:
    assert parse_ranges([["0", 81]], "frames") == [(0.0, 81.0)]
    for bad in (0.5, "00:00:01"):
        with pytest.raises(BadRange, match="not a frame number"):
            parse_ranges([bad, 100], "frames")


def test_a_date_is_no_range() -> None:
    assert not holds_pairs("2024-01-01 12:00:00") and not holds_pairs(1_700_000_000) and not holds_pairs("00:01")
    assert holds_pairs("[0, 1]") and holds_pairs((0, 1)) and holds_pairs("0:01-0:02")


@pytest.mark.parametrize(
    "names", ["start end", "start_time end_time", "start_s end_s", "Start_timestamp End_timestamp", "START END"]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_two_columns_are_found_by_name(tmp_path: Path, recipe: Recipe, names: str, suffix: str) -> None:
    start, end = names.split()
    table = pa.table({"path": ["a.mp4", "a.mp4"], start: [0.0, 1.5], end: [1.0, 2.5], "caption": ["one", "two"]})
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        pa.csv.write_csv(table, path)
    else:
        jsonl(path, table.to_pylist())
    found = read_items(tmp_path, recipe, str(path))
    assert [(item.ordinal, item.key, item.range, item.caption) for item in found] == [
        (0, "a.mp4", (0.0, 1.0), "one"),
        (1, "a.mp4", (1.5, 2.5), "two"),
    ]
    assert found[0].meta == {}


def test_times_of_day_in_a_csv_are_minutes_and_seconds(tmp_path: Path, recipe: Recipe) -> None:
    """Arrow takes 00:05 for a time of day with five minutes."""
    (tmp_path / "m.csv").write_text("path,start,end\na.mp4,00:05,00:07\n")
    assert [item.range for item in read_items(tmp_path, recipe, f"{tmp_path}/m.csv")] == [(5.0, 7.0)]


def test_columns_are_found_by_flag_or_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    url = jsonl(tmp_path / "m.jsonl", [{"path": "a.mp4", "from": 1, "to": 2, "start": 3, "end": 4, "span": [5, 6]}])
    for number, (names, expected) in enumerate(
        {("from", "to"): (1.0, 2.0), (): (3.0, 4.0), ("span",): (5.0, 6.0), ("none",): None}.items()
    ):
        with_columns = dataclasses.replace(recipe, range_columns=names)
        (item,) = read_items(tmp_path / str(number), with_columns, url)
        assert item.range == expected
    assert item.meta["meta_start"] == 3
    with pytest.raises(ConfigError, match=r"expected the columns begin, to \(--range-columns\)"):
        planned(tmp_path / "x", dataclasses.replace(recipe, range_columns=("begin", "to")), url)
    with pytest.raises(ConfigError, match="one column or two, got 3"):
        dataclasses.replace(recipe, range_columns=("a", "b", "c"))


def test_dates_are_user_columns(tmp_path: Path, recipe: Recipe) -> None:
    rows = [{"path": "a.mp4", "timestamp": "2024-01-01 12:00:00", "start": "2024-01-01", "end": "2024-01-02"}]
    (item,) = read_items(tmp_path, recipe, jsonl(tmp_path / "m.jsonl", rows))
    assert item.range is None and item.fault is None and str(item.meta["meta_timestamp"]) == "2024-01-01 12:00:00"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_list_gives_several_items_with_their_own_captions(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    rows = [
        {
            "path": f"{n}.mp4",
            "timestamp": [[f"0:00:{i:02d}.000", f"0:00:{i + 1:02d}.000"] for i in range(n + 1)],
            "caption": [f"{n} {i}" for i in range(n + 1)],
            "n": n,
        }
        for n in range(6)
    ]
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif suffix == "csv":
        cells = [{name: str(value) for name, value in row.items()} for row in rows]
        pa.csv.write_csv(pa.Table.from_pylist(cells), path)
    else:
        jsonl(path, rows)
    _, plan = planned(tmp_path, recipe, str(path))
    assert [(unit.start, unit.stop) for unit in plan.units] == [(0, 6), (6, 10), (10, 15), (15, 21)]
    found = read_items(tmp_path, recipe, str(path))
    assert [item.ordinal for item in found] == list(range(21))
    assert [(item.key, item.range, item.caption, item.meta["meta_n"]) for item in found] == [
        (f"{n}.mp4", (float(i), i + 1.0), f"{n} {i}", n) for n in range(6) for i in range(n + 1)
    ]
    assert all(item.captions is None for item in found)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "text.parquet"])
def test_two_columns_of_lists_give_several_items(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    rows = [
        {
            "path": f"{n}.mp4",
            "Start ": list(range(n)),
            "end": [i + 0.5 for i in range(n)],
            "caption": [f"{n} {i}" for i in range(n)],
        }
        for n in (1, 2, 5)
    ] + [{"path": "x.mp4", "Start ": [0, 1], "end": [1.0], "caption": ["a"]}]
    cells = [{name: str(value) for name, value in row.items()} for row in rows]
    path = tmp_path / f"m.{suffix}"
    if suffix == "csv":
        pa.csv.write_csv(pa.Table.from_pylist(cells), path)
    elif suffix == "jsonl":
        jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(cells if suffix == "text.parquet" else rows), path)
    *found, bad = read_items(tmp_path, recipe, str(path))
    assert [item.ordinal for item in found] == list(range(8)) and bad.ordinal == 8
    assert [(item.key, item.range) for item in found] == [
        (f"{n}.mp4", (float(i), i + 0.5)) for n in (1, 2, 5) for i in range(n)
    ]
    assert bad.fault is not None and "a list of 2 as starts and a list of 1 as ends" in bad.fault.message


def test_one_caption_stands_for_every_range_and_a_wrong_number_for_none(tmp_path: Path, recipe: Recipe) -> None:
    rows = [
        {"path": "a.mp4", "cut": [[0, 1], [1, 2]], "caption": ["both"]},
        {"path": "b.mp4", "cut": [[0, 1], [1, 2], [2, 3]], "caption": ["one", "two"]},
        {"path": "c.mp4", "cut": [[0, 1]], "caption": ["one", "two"]},
    ]
    found = read_items(tmp_path, recipe, jsonl(tmp_path / "m.jsonl", rows))
    assert [item.caption for item in found] == ["both", "both", None, None, None, "one"]
    assert found[5].captions == ["one", "two"]
    assert [item.fault and item.fault.name for item in found] == [None, None, *["read/bad_range"] * 3, None]
    assert found[2].fault is not None and "3 ranges and 2 captions" in found[2].fault.message


def test_a_bad_range_is_a_reject_of_its_row(tmp_path: Path, recipe: Recipe) -> None:
    rows = [{"path": "a.mp4", "start": 2.0, "end": 1.0}, {"path": "b.mp4", "start": 0.0, "end": 1.0}]
    bad, good = read_items(tmp_path, recipe, jsonl(tmp_path / "m.jsonl", rows))
    assert bad.fault is not None and bad.fault.name == "read/bad_range"
    assert "column start and end: the range ends at 1" in bad.fault.message
    assert good.fault is None and good.range == (0.0, 1.0)


def test_frame_columns_are_ranges_only_in_frames(tmp_path: Path, recipe: Recipe) -> None:
    url = jsonl(tmp_path / "m.jsonl", [{"path": "a.mp4", "start_frame": 10, "end_frame": 50}])
    (item,) = read_items(tmp_path, recipe, url)
    assert item.range is None
    (item,) = read_items(tmp_path / "frames", dataclasses.replace(recipe, range_unit="frames"), url)
    assert item.range == (10.0, 50.0)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_that_name_one_video_twice_are_named(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    table = pa.table({"video": ["a.mp4", "b.mp4", "b.mp4", "a.mp4"], "start": [0, 1, 2, 3], "stop": [1, 2, 3, 4]})
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        pa.csv.write_csv(table, path)
    else:
        jsonl(path, table.to_pylist())
    (said,) = notes(path, recipe)
    assert "2 rows name a video that an earlier row names, for example row 3 that of row 2, 'b.mp4'" in said
    assert f"m.{suffix}" in said
    assert notes(path, dataclasses.replace(recipe, range_columns=("start", "stop"))) == []


def test_rows_without_a_path_do_not_repeat_one_another() -> None:
    repeats = Repeats(["path"])
    for _ in range(3):
        repeats.add(pa.table({"path": pa.nulls(10, pa.string())}))
    assert repeats.first("path") is None
    repeats.add(pa.table({"path": ["a.mp4", None, "a.mp4"]}))
    assert repeats.first("path") == (30, 32, 1)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a.mp4", "", "é" * 300 + "1", "a.mp4\0", "é" * 300 + "2", None, "b.mp4", "a.mp4x"]),
        pa.array([b"a", b"\xff", b"x" * 600, b"", None, b"x" * 601]),
        pa.array(["a", "b", None, "c"]).dictionary_encode(),
        pa.array(["a" * n for n in range(1, 1200)], pa.large_string()),
        pa.array([0, -1, 1 << 62, None], pa.int64()),
        pa.array([f"{n:06d}.mp4" for n in range(200_000)]),
    ],
)
def test_paths_are_compared_exactly(values: pa.Array) -> None:
    """Rows that differ are not the same, and every row repeats itself, also in another block and behind an offset."""
    repeats = Repeats(["path"])
    repeats.add(pa.table({"path": values}))
    assert repeats.first("path") is None
    filled = values.slice(1).drop_null()
    repeats.add(pa.table({"path": filled}))
    found = repeats.first("path")
    assert found is not None and found[1:] == (len(values), len(filled))


def test_ranges_that_are_found_by_name_are_noted(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.csv").write_text("path,start,end\na.mp4,0,1\na.mp4,1,2\n")
    (note,) = notes(tmp_path / "m.csv", recipe)
    assert "each row is a clip of its video by 'start' and 'end', in seconds" in note


def notes(path: Path, recipe: Recipe) -> list[str]:
    """What planning a manifest prints."""
    said: list[str] = []
    plan_units(Plan(units=[], columns=[]), find_sources([str(path)]), recipe, said.append)
    return said


def test_the_memory_for_rows_with_lists_does_not_grow_with_their_number(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is cut into single rows for one slice at a time."""
    lengths = []
    survey = sys.modules["pipeline.sources.manifest.survey"]  # the package has a function of this name
    real = survey.cut_records
    monkeypatch.setattr(survey, "cut_records", lambda *args: lengths.append(len(cut := real(*args))) or cut)
    (tmp_path / "m.csv").write_text("path,cut\n" + '"a.mp4","[[0, 1], [1, 2]]"\n\n' * 1000)
    units, _ = plan_units(Plan(units=[], columns=[]), find_sources([str(tmp_path / "m.csv")]), recipe)
    assert [(unit.row_stop, unit.stop) for unit in units[::250]] == [(2, 4), (502, 1004)]
    assert lengths == [250, *[4] * 250]

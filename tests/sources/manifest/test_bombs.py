"""Manifests that unpack to gigabytes, and rows that no library can hold: refused by name when they are planned."""

from __future__ import annotations

import gzip
import re
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.manifest import bounds, parquet_pages, unpack
from tests.sources.test_sources import planned, read_items

DEEP = "[" * 100_000 + "]" * 100_000
PATHS = {"path": ["a.mp4"] * 8192}


def repeated(size_bytes: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), pa.array(["y" * size_bytes]))


PARQUET: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one page": ({"path": ["a"], "x": ["y" * (200 << 20)]}, {"use_dictionary": False}, "bytes that unpacks to"),
    "a path": ({"path": ["y" * (200 << 20)]}, {"use_dictionary": False}, "bytes that unpacks to"),
    "a dictionary": (PATHS | {"x": repeated(4 << 20)}, {}, "repeats values of"),
    "three dictionaries": (PATHS | {f"x{n}": repeated(3 << 20) for n in range(3)}, {}, "repeats values of"),
    "lists of nulls": ({"path": ["a"], "x": pa.array([[None] * 100_000_000], pa.list_(pa.null()))}, {}, "has lists of"),
    "rows": ({"path": pa.nulls(20_000_000, pa.string())}, {}, "claims 20000000 rows"),
    "columns": ({"path": ["a"]} | {f"c{n}": [1] for n in range(5000)}, {}, "5001 columns; the limit is 4096"),
    "a name": ({"path": ["a"], "x" * 100_000: [1]}, {}, "name has 100000 characters"),
    "year": ({"path": ["a"], "t": pa.array([2**62], pa.timestamp("us"))}, {}, "'t' is timestamp.*cannot be read"),
    "zone": ({"path": ["a"], "t": pa.array([1], pa.timestamp("us", "Mars/X"))}, {}, "'t' is timestamp.*cannot be read"),
    "date": ({"path": ["a"], "t": pa.array([2**30], pa.date32())}, {}, "'t' is date32.*cannot be read"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_parquet_that_is_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, recipe: Recipe, name: str) -> None:
    columns, options, message = PARQUET[name]
    pq.write_table(pa.table(columns), tmp_path / "m.parquet", compression="zstd", **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path, recipe, str(tmp_path / "m.parquet"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_bomb_in_a_column_that_planning_does_not_measure_is_a_reject_of_its_rows(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning measures small columns only: a large one may have thousands of pages."""
    monkeypatch.setattr(parquet_pages, "LARGE_CHUNK_BYTES", 1000)
    rows = {"path": ["a.mp4", "b.mp4", "c.mp4"], "x": ["y" * 10, "y" * 10, "y" * (200 << 20)]}
    pq.write_table(pa.table(rows), tmp_path / "m.parquet", compression="zstd", use_dictionary=False, row_group_size=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, second, third = read_items(tmp_path, recipe, str(tmp_path / "m.parquet"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert first.fault is None and second.fault is None and second.key == "b.mp4"
    assert third.fault is not None and third.fault.name == "read/unbounded_column" and third.ordinal == 2
    assert "column 'x' has a page of" in third.fault.message


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_of_every_kind_are_measured(
    tmp_path: Path, recipe: Recipe, dictionary: bool, compression: str, version: str
) -> None:
    rows = {
        "path": [f"{n % 100}.mp4" for n in range(120)],
        "caption": [None if n % 7 else f"caption {n}" for n in range(120)],
        "tags": [["a", None, str(n)][: n % 4] for n in range(120)],
        "score": [n / 3 for n in range(120)],
    }
    options: Any = {"use_dictionary": dictionary, "compression": compression, "data_page_version": version}
    pq.write_table(pa.table(rows), tmp_path / "m.parquet", data_page_size=100, row_group_size=50, **options)
    found = read_items(tmp_path, recipe, str(tmp_path / "m.parquet"))
    assert [item.key for item in found] == rows["path"] and [item.caption for item in found] == rows["caption"]
    assert [item.meta["meta_tags"] for item in found] == rows["tags"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"path": "a", "x": ' + DEEP + "}\n", "row 1 has more than 64 lists or objects"),
        ("m.jsonl", '{"path": "a"}\n' * 3 + '{"x":' * 30_000 + "1" + "}" * 30_000 + "\n", "row 4 has more than 64"),
        ("m.json", '[{"path": "a", "x": ' + DEEP + "}]", "row 1 is not strict JSON"),
        *(("m.json", '[{"path": "a", "x": ' + "[" * n + "]" * n + "}]", "row 1 ") for n in range(940, 1000, 6)),
        ("metadata.jsonl", '{"file_name": "a.mp4", "x": ' + DEEP + "}\n", "row 1 has more than 64 lists or objects"),
        ("m.json", '[{"path": "a", "x": ' + "[" * 500 + "]" * 500 + "}]", "row 1 has more than 64"),
        ("m.json", '[{"path": "a", "x": ' + "9" * 5000 + "}]", "row 1 is not strict JSON"),
        ("m.csv", "a" * (2 << 20), "first line of more than 1 MB"),
        ("m.csv", "path," + ",".join(f"c{n}" for n in range(5000)) + "\n", "5001 columns"),
    ],
)
def test_text_that_libraries_cannot_hold_is_refused(
    tmp_path: Path, recipe: Recipe, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path, recipe, str(tmp_path / name))


def test_brackets_inside_of_texts_do_not_count(tmp_path: Path, recipe: Recipe) -> None:
    caption = "[" * 500 + '\\" {{{'
    rows = '{"path": "a.mp4", "caption": "' + "[" * 500 + '\\\\\\" {{{"}\n{"path": "b.mp4", "caption": ""}\n'
    (tmp_path / "m.jsonl").write_text(rows)
    assert [item.caption for item in read_items(tmp_path, recipe, str(tmp_path / "m.jsonl"))] == [caption, ""]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_and_units_of_text_have_a_limit(
    tmp_path: Path, recipe: Recipe, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"csv": "a.mp4,{}\n", "jsonl": '{{"path": "a.mp4", "x": "{}"}}\n'}[suffix]
    head = "path,x\n" if suffix == "csv" else ""
    (tmp_path / f"m.{suffix}").write_text(head + row.format("short") + row.format("y" * 5000))
    monkeypatch.setattr(bounds, "MAX_ROW_BYTES", 4000)
    with pytest.raises(ConfigError, match="row 2 has more than"):
        planned(tmp_path, recipe, str(tmp_path / f"m.{suffix}"))
    monkeypatch.setattr(bounds, "MAX_ROW_BYTES", 8000)
    monkeypatch.setattr(bounds, "MAX_SLICE_BYTES", 4000)
    with pytest.raises(ConfigError, match="rows 1 to 2, which would be one unit"):
        planned(tmp_path, recipe, str(tmp_path / f"m.{suffix}"))


@pytest.mark.parametrize("name", ["m.csv.gz", "m.json.gz"])
def test_a_gzip_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, recipe: Recipe, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    content = b"path\n" + b"a.mp4\n" * 5_000_000 if "csv" in name else b"[" + b" " * (32 << 20) + b"]"
    (tmp_path / name).write_bytes(gzip.compress(content))
    with pytest.raises(ConfigError, match="unpacks to more than 250 times its size"):
        planned(tmp_path, recipe, str(tmp_path / name))


def test_a_header_of_a_page_that_is_cut_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": ["a.mp4"] * 100}), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape("m.parquet")):
        planned(tmp_path, recipe, str(path))

"""Parquet manifests: bytes that are text, bytes that are files, and memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.manifest import parquet_rows
from pipeline.sources.manifest.parquet_pages import ManifestFile
from tests.sources.manifest.test_ranges import notes
from tests.sources.test_sources import content_of, planned, read_items


def write(path: Path, table: pa.Table, **options: object) -> str:
    pq.write_table(table, path, **options)
    return str(path)


def test_bytes_that_are_text_are_text(tmp_path: Path, recipe: Recipe) -> None:
    table = pa.table({"path": [b"a.mp4", b"b.mp4"], "caption": ["größer".encode(), None]})
    found = read_items(tmp_path, recipe, write(tmp_path / "m.parquet", table))
    assert [(item.key, item.caption, item.fault) for item in found] == [
        ("a.mp4", "größer", None),
        ("b.mp4", None, None),
    ]


@pytest.mark.parametrize("name", ["path", "caption"])
def test_bytes_that_are_not_utf8_are_refused_by_row(tmp_path: Path, recipe: Recipe, name: str) -> None:
    columns = {"path": [b"a.mp4"] * 2, "caption": [b"x"] * 2} | {name: [b"x", b"caf\xe9"]}
    with pytest.raises(ConfigError, match=rf"m\.parquet': row 2, column '{name}', is not UTF-8"):
        planned(tmp_path, recipe, write(tmp_path / "m.parquet", pa.table(columns)))


@pytest.mark.parametrize("as_struct", [True, False])
def test_videos_inside_parquet_are_read(tmp_path: Path, recipe: Recipe, as_struct: bool) -> None:
    """The columns of a Hugging Face ``Video`` feature, and of FineVideo."""
    videos = [bytes([n, 0, 255]) * 5000 for n in range(6)]
    if as_struct:
        cells = [{"bytes": video, "path": f"/home/maker/{n}.mp4"} for n, video in enumerate(videos)]
        table = pa.table({"video": cells, "caption": [f"c{n}" for n in range(6)]})
    else:
        about = [{"youtube_title": f"c{n}", "content": {"scenes": [1, 2]}} for n in range(6)]
        table = pa.table({"mp4": videos, "json": about})
        recipe = dataclasses.replace(recipe, caption_column="json.youtube_title")
    url = write(tmp_path / "m.parquet", table, row_group_size=2)
    assert notes(Path(url), recipe) == []
    found = read_items(tmp_path, recipe, url)
    assert [content_of(item, recipe) for item in found] == videos
    keys = [f"{n}.mp4" if as_struct else f"row-{n:08d}" for n in range(6)]
    assert [item.key for item in found] == keys
    assert found[1].uri == f"file://{url}#{keys[1]}"
    assert [item.caption for item in found] == [f"c{n}" for n in range(6)]
    assert found[0].meta == ({} if as_struct else {"meta_json": table["json"][0].as_py()})


def test_a_video_that_is_only_named_is_fetched(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "b.mp4").write_bytes(b"beside")
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": b"\0" * 10, "path": None}, {"bytes": None, "path": "b.mp4"}, {"bytes": None, "path": None}]
    table = pa.table({"video": pa.array([*cells, None], type_)})
    inside, beside, absent, null = read_items(tmp_path, recipe, write(tmp_path / "m.parquet", table))
    assert (inside.key, content_of(inside, recipe)) == ("row-00000000", b"\0" * 10)
    assert (beside.key, content_of(beside, recipe)) == ("b.mp4", b"beside")
    assert absent.fault is not None and absent.fault.reason == "no_path" and null.fault is not None


def test_a_video_above_the_limit_is_a_reject(tmp_path: Path, recipe: Recipe) -> None:
    url = write(tmp_path / "m.parquet", pa.table({"mp4": [b"\0" * 100]}))
    (item,) = read_items(tmp_path, dataclasses.replace(recipe, max_item_bytes=99), url)
    assert item.content is None and item.fault is not None and item.fault.reason == "too_large"


def test_files_beside_a_path_are_left_out_with_a_note(tmp_path: Path, recipe: Recipe) -> None:
    blobs = [bytes([n]) * 5000 for n in range(3)]
    table = pa.table(
        {
            "path": ["a.mp4", "b.mp4", "c.mp4"],
            "blob": blobs,
            "thumbnail": [{"bytes": blob, "path": "x.jpg"} for blob in blobs],
            "digest": [b"\xff\xfe"] * 3,
        }
    )
    url = write(tmp_path / "m.parquet", table, compression="none", use_dictionary=False)
    (note,) = notes(Path(url), recipe)
    assert "left out the columns with files in them: blob, thumbnail" in note
    found = read_items(tmp_path, recipe, url)
    assert [item.meta for item in found] == [{"meta_digest": b"\xff\xfe"}] * 3


def test_a_path_column_of_another_type_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"its path column 'video' is list<.*say which column is with --path-column"):
        planned(tmp_path, recipe, write(tmp_path / "m.parquet", pa.table({"video": [["a.mp4"]]})))


def test_types_that_other_readers_lack_are_replaced(tmp_path: Path, recipe: Recipe) -> None:
    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
    table = pa.table(
        {
            "path": pa.array(["a", "b", "c"], pa.string_view()),
            "flag": flags,
            "note": pa.array(["x"] * 3, pa.large_string()),
        }
    )
    url = write(tmp_path / "m.parquet", table)
    _, plan = planned(tmp_path, recipe, url)
    assert [str(field.type) for field in plan.columns[0]] == ["string", "bool", "large_string"]
    found = read_items(tmp_path, recipe, url)
    assert [(item.key, item.meta["meta_flag"]) for item in found] == [("a", True), ("b", False), ("c", None)]


def test_a_manifest_without_rows_needs_another_source(tmp_path: Path, recipe: Recipe) -> None:
    empty = write(tmp_path / "a.parquet", pa.table({"path": pa.array([], pa.string())}))
    with pytest.raises(ConfigError, match="nothing to encode"):
        planned(tmp_path, recipe, empty)
    full = write(tmp_path / "b.parquet", pa.table({"path": ["b.mp4"]}))
    _, plan = planned(tmp_path, recipe, empty, full)
    assert len(plan.units) == 1


def test_batches_are_bounded_by_bytes(tmp_path: Path) -> None:
    heavy = write(tmp_path / "a.parquet", pa.table({"mp4": [bytes([n]) * (4 << 20) for n in range(20)]}))
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["\0" * (8 << 20)]))
    bomb = write(tmp_path / "b.parquet", pa.table({"path": ["a.mp4"] * 1000, "x": same}))
    light = write(tmp_path / "c.parquet", pa.table({"path": ["a.mp4"] * 10_000}))

    def rows_per_batch(path: str, names: list[str] | None = None) -> int:
        with open(path, "rb") as file:
            return parquet_rows._rows_per_batch(ManifestFile(file), 0, names, path)

    rows = [rows_per_batch(path) for path in (heavy, bomb, light)]
    assert 1 <= rows[0] <= 10 and 1 <= rows[1] <= 5 and rows[2] == parquet_rows.BATCH_ROWS
    assert rows_per_batch(bomb, ["path"]) == parquet_rows.BATCH_ROWS

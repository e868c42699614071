"""Lance tables, written by pylance."""

from __future__ import annotations

import builtins
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources.formats import format_of
from tests.sources.test_sources import content_of, planned, read_items


def write(path: Path, table: pa.Table, **options: Any) -> str:
    lance.write_dataset(table, str(path), **options)
    return str(path)


def test_rows_with_paths_are_items(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"a")
    paths = ["videos/a.mp4", "pipe://cat x", *(f"videos/{number}.mp4" for number in range(3))]
    captions = ["one", "two", None, "four", "five"]
    url = write(tmp_path / "set.lance", pa.table({"Video": paths, "Caption": captions, "score": [1, 2, 3, 4, 5]}))
    found = read_items(tmp_path, recipe, url)
    assert [(i.ordinal, i.key, i.caption, i.meta) for i in found] == [
        (n, path, caption, {"meta_score": n + 1}) for n, (path, caption) in enumerate(zip(paths, captions, strict=True))
    ]
    assert content_of(found[0], recipe) == b"a" and not found[0].trusted
    assert found[1].fault is not None and found[1].fault.reason == "forbidden_url"
    rooted = dataclasses.replace(recipe, root="s3://bucket/set")
    assert read_items(tmp_path / "rooted", rooted, url)[0].uri == "s3://bucket/set/videos/a.mp4"


@pytest.mark.parametrize("version", ["bytes", "blob", "blob-2"])
def test_rows_with_videos_are_items(tmp_path: Path, recipe: Recipe, version: str) -> None:
    """Plain binary columns, and the blob encodings of file formats 2.0 and 2.2."""
    contents = [b"a" * 100_000, b"", b"c", b"d", b"e" * 10]
    columns: list[Any] = [list("vwxyz"), ["a", "b", "c", "d", "e"]]
    options: dict[str, Any] = {}
    field = pa.field("video_blob", pa.large_binary())
    array: Any = pa.array(contents, pa.large_binary())
    if version == "blob":
        field = pa.field("video_blob", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    if version == "blob-2":
        field, array = lance.blob_field("video_blob"), lance.blob_array(contents)
        options = {"data_storage_version": "2.2"}
    schema = pa.schema([pa.field("name", pa.string()), pa.field("text", pa.string()), field])
    url = write(
        tmp_path / "set.lance", pa.Table.from_arrays([*map(pa.array, columns), array], schema=schema), **options
    )
    recipe = dataclasses.replace(recipe, max_item_bytes=50_000)
    found = read_items(tmp_path, recipe, url)
    assert [(i.key, i.caption, i.meta.get("meta_name")) for i in found] == list(
        zip("vwxyz", "abcde", "vwxyz", strict=True)
    )
    assert [i.fault and i.fault.reason for i in found] == ["too_large", "no_path", None, None, None]
    assert [content_of(item, recipe) for item in found[2:]] == contents[2:]
    assert found[2].uri == f"file://{url}#2"


def test_a_plan_keeps_the_version_of_the_table(tmp_path: Path, recipe: Recipe) -> None:
    url = write(tmp_path / "set.lance", pa.table({"path": [f"{number}.mp4" for number in range(6)]}))
    _, plan = planned(tmp_path, recipe, url)
    assert [(unit.start, unit.stop) for unit in plan.units] == [(0, 4), (4, 6)]
    lance.dataset(url).delete("path = '1.mp4'")
    first, second = plan.units
    source_format = format_of(first)
    assert [i.key for i in source_format.items(first, url, recipe, pa.schema([]))] == [f"{n}.mp4" for n in range(4)]
    assert [i.key for i in source_format.some_items(second, {5}, url, recipe, pa.schema([]))] == ["5.mp4"]
    with pytest.raises(SourceChanged, match=r"version 1.*version 2"):
        planned(tmp_path, recipe, url)
    assert [i.key for i in read_items(tmp_path / "new", recipe, url)] == [f"{n}.mp4" for n in (0, 2, 3, 4, 5)]
    shutil.rmtree(url)
    with pytest.raises(SourceChanged, match=r"version 1 of .* cannot be opened any more"):
        list(source_format.items(first, url, recipe, pa.schema([])))


def test_a_table_in_an_object_store_is_read(tmp_path: Path, recipe: Recipe, s3: str) -> None:
    options = {"allow_http": "true"}
    lance.write_dataset(pa.table({"path": ["a.mp4"], "text": ["x"]}), f"{s3}/set.lance", storage_options=options)
    (item,) = read_items(tmp_path, recipe, f"{s3}/set.lance")
    assert (item.key, item.caption, item.uri) == ("a.mp4", "x", f"{s3}/a.mp4")
    with pytest.raises(ConfigError, match="there is no Lance table at"):
        planned(tmp_path / "other", recipe, f"{s3}/nowhere.lance")


def test_what_cannot_be_used_is_refused(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "set.lance", pa.table({"path": ["a.mp4"], "url": ["b.mp4"]}))
    with pytest.raises(
        ConfigError, match=r"expected one column with videos or paths, found \['path', 'url'\].*--path-column"
    ):
        planned(tmp_path / "0", recipe, url)
    assert read_items(tmp_path / "1", dataclasses.replace(recipe, path_column="url"), url)[0].key == "b.mp4"
    with pytest.raises(ConfigError, match=r"there is no Lance table at 'file://.*nowhere\.lance'"):
        planned(tmp_path / "2", recipe, str(tmp_path / "nowhere.lance"))
    real_import = builtins.__import__

    def without_lance(name: str, *rest: Any) -> Any:
        if name == "lance":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_lance)
    with pytest.raises(ConfigError, match=r"install the extra 'lance' \(pip install '\.\[lance\]'\)"):
        planned(tmp_path / "3", recipe, url)


def test_captions_of_bytes_are_text_or_a_reject(tmp_path: Path, recipe: Recipe) -> None:
    table = pa.table(
        {"path": ["a.mp4", "b.mp4", "c.mp4"], "caption": pa.array(["é".encode(), b"\xff", None], pa.binary())}
    )
    one, bad, none = read_items(tmp_path, recipe, write(tmp_path / "set.lance", table))
    assert (one.caption, one.meta, one.fault) == ("é", {}, None)
    assert bad.fault is not None and bad.fault.name == "read/bad_sidecar"
    assert (none.caption, none.fault) == (None, None)

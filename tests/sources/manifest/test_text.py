"""Text of CSV, TSV, JSONL and JSON manifests: encodings, line ends, types, compression, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import FORMATS
from pipeline.sources.manifest import survey
from tests.sources.manifest.test_ranges import notes
from tests.sources.test_sources import planned, read_items

ROWS = b"path,caption\na.mp4,one\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "path,caption\r\na.mp4,Un café\r\n".encode("latin-1"), "row 1, column 'caption', is not UTF-8"),
        ("m.csv", ROWS * 300 + b"caf\xe9.mp4,x\n", "row 600, column 'path', is not UTF-8; save the file as CSV UTF-8"),
        ("m.tsv", b"path\tcaption\na.mp4\tcaf\xe9\n", "row 1, column 'caption', is not UTF-8"),
        ("m.jsonl", b'{"path": "a.mp4"}\n{"path": "b.mp4", "note": "caf\xe9"}\n', "row 2, column 'note', is not UTF-8"),
        ("m.json", b'[{"path": "a.mp4"}, {"path": "caf\xe9.mp4"}]', "is not UTF-8 near row 1"),
        ("m.csv", b"path,caf\xe9\na.mp4,x\n", "not UTF-8 in its first line"),
        ("m.csv", ROWS + "b.mp4,é".encode()[:-1], "ends within a character"),
        ("m.csv", ROWS.decode().encode("utf-16"), "is UTF-16, not UTF-8"),
        ("m.jsonl", '{"path": "a"}\n'.encode("utf-16-le"), "has zero bytes; perhaps it is UTF-16"),
        ("m.csv", ROWS.decode().encode("utf-32"), "is UTF-32"),
        ("m.csv", b"path,caption\n", "has no rows, only a header"),
        ("m.csv", b"path,caption", "has no rows, only a header"),
        ("m.csv", b"path,caption\n\n\n", "has no rows, only a header"),
        ("m.csv", b"path,path\na.mp4,b.mp4\n", "has 2 columns named 'path'; rename one"),
        ("m.csv", b"", "has no rows"),
        ("m.jsonl", b"", "has no rows"),
        ("m.jsonl", b"\n\n", "has no rows"),
        ("m.json", b"[]", "has no rows"),
        ("m.csv", ROWS.replace(b"\n", b"\r"), "lines that end in CR alone"),
        ("m.csv", ROWS + b'b.mp4,"two\nc.mp4,three\n', "has a quote in row 2 that is not closed"),
        ("m.csv", ROWS.replace(b",", b";"), "separated by semicolons: save it with commas, or as .tsv with tabs"),
        ("m.csv", ROWS.replace(b",", b"\t"), "separated by tabs"),
        ("m.csv", ROWS + b"b.mp4,one, two\n", "from row 2 on: it has 3 columns where the header has 2"),
        (
            "m.csv",
            ROWS + rb'b.mp4,"say \"no, no\""' + b"\n",
            "it has 3 columns where the header has 2; quotes are doubled",
        ),
        (
            "m.jsonl",
            b'{"path": "a", "caption": "x"}\n{"path": "b", "caption": ["x"]}\n',
            "from row 2 on: column 'caption'",
        ),
        ("m.jsonl", b'{"path": "a"}\n3\n', "from row 2 on: it is not an object"),
        ("m.json", b'{"data": [{"path": "a"}]}', "is one object with the field 'data'"),
        ("m.json", b'{"a.mp4": {"caption": "x"}, "b.mp4": {"caption": "y"}}', "is one object with the field 'a.mp4'"),
        ("m.json", b'[{"path": "a"}, {"path": ', "row 2 is not strict JSON, or the file ends in it"),
        ("m.json", b'["a.mp4", "b.mp4"]', "row 1 is not an object"),
        (
            "m.jsonl",
            b'{"path": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}\n",
            "row 1 has more than 64 lists",
        ),
        ("m.jsonl", b'{"path": "a", "x": ' + b"[" * 20 + b"1" + b"]" * 20 + b"}\n", "'x' has more than 16 lists"),
        ("m.csv.gz", ROWS, "is damaged, or not compressed with gzip"),
        ("m.csv.gz", gzip.compress(ROWS * 100, mtime=0)[:-20], "ends early"),
        ("m.json", b'[{"path": "a", "caption": "\\ud800"}]', "cannot be read as json"),
    ],
)
def test_text_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, recipe: Recipe, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as failure:
        planned(tmp_path, recipe, str(tmp_path / name))
    assert name in str(failure.value) and "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", ROWS),
        ("m.csv", b"\xef\xbb\xbf" + ROWS),
        ("m.csv", ROWS.replace(b"\n", b",,\n")),
        ("m.csv", ROWS.replace(b"\n", b"\r\n")),
        ("m.csv", ROWS.replace(b"\n", b"\n\n")),
        ("m.csv", ROWS.replace(b"\n", b"\r\n\r\n")),
        ("m.csv", ROWS[:-1]),
        ("M.CSV", ROWS),
        ("m.csv", ROWS.replace(b"path,caption", b"Path,CAPTION")),
        ("m.tsv", ROWS.replace(b",", b"\t")),
        ("m.csv.gz", gzip.compress(ROWS, mtime=0)),
        ("m.tsv.gz", gzip.compress(ROWS.replace(b",", b"\t"), mtime=0)),
        ("m.jsonl", b'{"path": "a.mp4", "caption": "one"}\n\n'),
        ("m.jsonl", b'\xef\xbb\xbf{"path": "a.mp4", "caption": "one"}'),
        ("m.jsonl", b'{"path": "a.mp4", "caption": "one", "score": NaN}\n'),
        ("m.jsonl.gz", gzip.compress(b'{"path": "a.mp4", "caption": "one"}\n', mtime=0)),
        ("m.json", b'[{"path": "a.mp4", "caption": "one"}]'),
        ("m.json", b'\xef\xbb\xbf[\n  {"path": "a.mp4",\n   "caption": "one"}\n]\n'),
        ("m.json", b'{"path": "a.mp4", "caption": "one"}\n'),
        ("m.json", b'[{"path": "a.mp4", "caption": "one", "score": NaN}]'),
        ("m.json.gz", gzip.compress(b'[{"path": "a.mp4", "caption": "one"}]', mtime=0)),
    ],
)
def test_text_as_people_have_it_is_read(tmp_path: Path, recipe: Recipe, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (item,) = read_items(tmp_path, recipe, str(tmp_path / name))
    assert (item.ordinal, item.key, item.caption, item.fault) == (0, "a.mp4", "one", None)


def test_text_in_digits_stays_text(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.csv").write_text(
        "path,caption,clip_id,long,n,score,word\n"
        "0.mp4,NA,007,12345678901234567890,1,0.5,NA\n"
        "1.mp4,1.50,8,2,,NA,null\n"
        "2.mp4,null,9,3,3,nan,\n"
        "3.mp4,x,9,3,3,1,word\n"
    )
    found = read_items(tmp_path, recipe, f"{tmp_path}/m.csv")
    assert [item.caption for item in found] == ["NA", "1.50", "null", "x"]
    assert [item.meta["meta_clip_id"] for item in found] == ["007", "8", "9", "9"]
    assert [item.meta["meta_long"] for item in found] == ["12345678901234567890", "2", "3", "3"]
    assert [item.meta["meta_n"] for item in found] == [1, None, 3, 3]
    assert [item.meta["meta_score"] for item in found] == [0.5, None, None, 1.0]
    assert [item.meta["meta_word"] for item in found] == ["NA", "null", None, "word"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "path,x,y\na.mp4,1e400,1\nb.mp4,2,\nc.mp4,-inf,3\n"),
        ("m.tsv", "path\tx\ty\na.mp4\t1e400\t1\nb.mp4\t2\t\nc.mp4\t-1E+999\t3\n"),
        (
            "m.jsonl",
            '{"path": "a.mp4", "x": 1e400, "y": 1}\n{"path": "b.mp4", "x": 2, "caption": "1e400"}\n'
            '{"path": "c.mp4", "x": -Infinity, "y": 3}\n',
        ),
        (
            "m.json",
            '[{"path": "a.mp4", "x": 1e400, "y": 1}, {"path": "b.mp4", "x": 2}, {"path": "c.mp4", "x": -1e999, "y": 3}]',
        ),
    ],
)
def test_numbers_that_are_too_large_become_null_with_a_note(
    tmp_path: Path, recipe: Recipe, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    found = read_items(tmp_path, recipe, f"{tmp_path}/{name}")
    assert [item.meta["meta_x"] for item in found] == [None, 2.0, None]
    assert [item.meta["meta_y"] for item in found] == [1, None, 3]
    assert [item.note for item in found] == ["nan_to_null", None, "nan_to_null"]
    assert not any(item.fault for item in found)


def test_numbers_of_a_folders_table_that_are_too_large_become_null_with_a_note(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "x": 1e400}\n{"file_name": "b.mp4", "x": 2}\n')
    found = read_items(tmp_path, recipe, str(tmp_path))
    assert [item.meta["meta_x"] for item in found] == [None, 2.0]
    assert [item.note for item in found] == ["nan_to_null", None]


def test_numbers_inside_lists_and_objects_that_are_too_large_become_null(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "x": [1, 1e400], "s": {"deep": [{"y": 9e999}], "z": 1}}\n')
    (item,) = read_items(tmp_path, recipe, f"{tmp_path}/m.jsonl")
    assert item.meta["meta_x"] == [1.0, None] and item.meta["meta_s"] == {"deep": [{"y": None}], "z": 1}
    assert item.note == "nan_to_null"


def test_a_range_that_is_too_large_is_a_reject(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.csv").write_text("path,start,end\na.mp4,0,1e400\nb.mp4,0,1\n")
    found = read_items(tmp_path, recipe, f"{tmp_path}/m.csv")
    assert [item.fault.reason if item.fault else "" for item in found] == ["bad_range", ""]


def test_a_path_that_is_a_number_is_a_path(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.csv").write_text("path,caption\n0,x\n")
    (tmp_path / "n.jsonl").write_text('{"path": 7}\n')
    assert [item.key for item in read_items(tmp_path, recipe, f"{tmp_path}/m.csv", f"{tmp_path}/n.jsonl")] == ["0", "7"]


def types(tmp_path: Path, recipe: Recipe, *names: str, out: str = "1") -> dict[str, str]:
    """The types of the user columns of manifests that are planned together."""
    _, plan = planned(tmp_path / out, recipe, *[f"{tmp_path}/{name}" for name in names])
    return {field.name.removeprefix("meta_"): str(field.type) for field in plan.columns[-1]}


def test_types_of_several_files_are_unified(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.csv").write_text("path,note,score,id\na.mp4,,1,007\n")
    (tmp_path / "b.csv").write_text("path,note,score,id\nb.mp4,hello,0.5,12\n")
    (tmp_path / "c.jsonl").write_text('{"path": "c.mp4", "note": null, "score": 2, "id": "x"}\n')
    expected = {"meta": "string", "note": "string", "score": "double", "id": "string"}
    assert types(tmp_path, recipe, "a.csv", "b.csv", "c.jsonl") == expected
    assert types(tmp_path, recipe, "c.jsonl", "b.csv", "a.csv", out="2") == expected
    found = read_items(tmp_path, recipe, *[f"{tmp_path}/{name}" for name in ("a.csv", "b.csv", "c.jsonl")])
    assert [(i.meta["meta_note"], i.meta["meta_score"], i.meta["meta_id"]) for i in found] == [
        (None, 1.0, "007"),
        ("hello", 0.5, "12"),
        (None, 2, "x"),
    ]


def test_numbers_of_jsonl_do_not_become_the_text_of_another_file(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "a.mp4", "id": 1.5}\n')
    (tmp_path / "b.csv").write_text("path,id\nb.mp4,x\n")
    with pytest.raises(ConfigError, match=r"column 'id' is string in .* and double"):
        planned(tmp_path, recipe, f"{tmp_path}/a.jsonl", f"{tmp_path}/b.csv")


def test_a_column_may_gain_a_type_when_the_input_grows(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.csv").write_text("path,note,score\na.mp4,,1\n")
    (tmp_path / "b.csv").write_text("path,note,score\nb.mp4,hello,0.5\n")
    (tmp_path / "c.csv").write_text("path,note,score\nb.mp4,hello,high\n")
    planned(tmp_path, recipe, f"{tmp_path}/a.csv")
    _, plan = planned(tmp_path, recipe, f"{tmp_path}/a.csv", f"{tmp_path}/b.csv")
    assert [str(schema.field("meta_note").type) for schema in plan.columns] == ["null", "string"]
    assert [str(schema.field("meta_score").type) for schema in plan.columns] == ["int64", "double"]
    with pytest.raises(ConfigError, match="'score' is string"):
        planned(tmp_path, recipe, f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", f"{tmp_path}/c.csv")


def test_an_array_is_read_in_pieces(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.manifest.unpack.READ_CHARS", 7)
    rows = [{"path": f"{n}.mp4", "cap": [f"größer {n}"], "resolution": {"height": n}} for n in range(10)]
    (tmp_path / "m.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    found = read_items(tmp_path, recipe, f"{tmp_path}/m.json")
    assert [(item.key, item.caption, item.meta["meta_resolution"]) for item in found] == [
        (f"{n}.mp4", f"größer {n}", {"height": n}) for n in range(10)
    ]


def test_empty_lines_are_no_rows_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,caption\r\na.mp4,x\r\n\r\nb.mp4,y\r\n\r\n")
    for block_bytes in range(1, 30):
        monkeypatch.setattr("pipeline.sources.manifest.records.BLOCK_BYTES", block_bytes)
        assert [part.stop for part in survey(f"{tmp_path}/m.csv", 1).slices] == [1, 2], block_bytes


def test_a_survey_keeps_only_the_first_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.manifest.text_rows.PARSED_BYTES", 1 << 20)
    line = json.dumps({"path": "a.mp4", "caption": "x" * 1000}) + "\n"
    (tmp_path / "m.jsonl").write_text(line * 20_000)
    before, held_bytes = pa.total_allocated_bytes(), []
    surveyed = survey(f"{tmp_path}/m.jsonl", 100, lambda table: held_bytes.append(pa.total_allocated_bytes() - before))
    assert surveyed.sample is not None and surveyed.sample.num_rows == 100
    assert len(held_bytes) > 15 and max(held_bytes) < 10 << 20


def test_captions_keep_their_form(tmp_path: Path, recipe: Recipe) -> None:
    rows = [
        {"path": "0.mp4", "caption": ["first", "second"]},
        {"path": "1.mp4", "caption": ["only", None]},
        {"path": "2.mp4", "caption": []},
        {"path": "3.mp4"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_items(tmp_path, recipe, f"{tmp_path}/list.jsonl")
    assert [(item.caption, item.captions) for item in found] == [
        ("first", ["first", "second"]),
        ("only", None),
        (None, None),
        (None, None),
    ]
    (tmp_path / "dict.jsonl").write_text(
        '{"path": "a.mp4", "caption": {"short": "s", "long": "l"}}\n{"path": "b.mp4"}\n'
    )
    named, without = read_items(tmp_path / "d", recipe, f"{tmp_path}/dict.jsonl")
    assert named.caption is None and named.meta == {"meta_caption_short": "s", "meta_caption_long": "l"}
    assert without.meta == {}
    (tmp_path / "list.csv").write_text("path,caption\na.mp4,\"['a dog', 'a cat']\"\nb.mp4,[music] plays\n")
    spelled, plain = read_items(tmp_path / "c", recipe, f"{tmp_path}/list.csv")
    assert (spelled.captions, plain.caption, plain.captions) == (["a dog", "a cat"], "[music] plays", None)
    (tmp_path / "odd.jsonl").write_text('{"path": "a.mp4", "caption": [{"text": "x"}]}\n')
    (item,) = read_items(tmp_path / "o", recipe, f"{tmp_path}/odd.jsonl")
    assert item.caption is None and item.meta == {"meta_caption": [{"text": "x"}]}
    with pytest.raises(ConfigError, match="its caption column 'caption' is list"):
        planned(tmp_path / "p", dataclasses.replace(recipe, caption_column="caption"), f"{tmp_path}/odd.jsonl")


def test_a_caption_that_looks_like_a_date_is_text(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "caption": "2024-01-01"}\n')
    (item,) = read_items(tmp_path, recipe, f"{tmp_path}/m.jsonl")
    assert item.caption == "2024-01-01"


def test_paths_are_made_of_columns(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.csv").write_text("vid,part,caption\nabc,01,x\n,02,y\n")
    pattern = dataclasses.replace(recipe, path_column="videos/{part}/{vid}.mp4")
    made, lacking = read_items(tmp_path, pattern, f"{tmp_path}/m.csv")
    assert (
        made.key == "videos/01/abc.mp4" and made.fault is None and made.meta == {"meta_vid": "abc", "meta_part": "01"}
    )
    assert lacking.fault is not None and lacking.fault.reason == "no_path"
    with pytest.raises(ConfigError, match=r"needs the columns \['id'\]"):
        planned(tmp_path / "x", dataclasses.replace(recipe, path_column="{id}.mp4"), f"{tmp_path}/m.csv")


def test_names_of_columns_count_in_any_case_but_not_twice(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.jsonl").write_text('{"Video": "a.mp4", "Caption": "x", "caption": "y"}\n')
    (item,) = read_items(tmp_path, recipe, f"{tmp_path}/a.jsonl")
    assert (item.key, item.caption, item.meta) == ("a.mp4", "y", {"meta_Caption": "x"})
    (tmp_path / "b.jsonl").write_text('{"Path": "a.mp4", "PATH": "b.mp4"}\n')
    with pytest.raises(ConfigError, match=r"found \['Path', 'PATH'\]"):
        planned(tmp_path / "b", recipe, f"{tmp_path}/b.jsonl")
    assert notes(tmp_path / "a.jsonl", recipe) == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_pattern_may_say_how_numbers_are_written(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    text = "n,x\n7,a\n,b\n12,c\n" if suffix == "csv" else '{"n": 7, "x": "a"}\n{"x": "b"}\n{"n": 12, "x": "c"}\n'
    (tmp_path / f"m.{suffix}").write_text(text)
    for pattern, keys in (
        ("v/episode_{n:06d}.mp4", ["v/episode_000007.mp4", "", "v/episode_000012.mp4"]),
        ("{{{n}}}-{x}.mp4", ["{7}-a.mp4", "", "{12}-c.mp4"]),
        ("{x:03d}.mp4", ["", "", ""]),
    ):
        recipe = dataclasses.replace(recipe, path_column=pattern)
        found = read_items(tmp_path / str(len(pattern)), recipe, f"{tmp_path}/m.{suffix}")
        assert [item.key for item in found] == keys
        assert [item.fault and item.fault.name for item in found] == [None if key else "read/no_path" for key in keys]


def test_manifests_are_recognized_by_their_endings() -> None:
    manifest = FORMATS["manifest"]
    for name in "m.csv M.CSV m.tsv m.json m.jsonl m.ndjson m.parquet m.csv.gz m.JSON.GZ http://x/m.csv?token=1".split():
        assert manifest.recognizes(name), name
    for name in "m.txt m.csv.zst m.parquet.gz m.gz m.tar.gz csv".split():
        assert not manifest.recognizes(name), name
    with pytest.raises(ConfigError):
        find_sources(["/nowhere/m.csv"])

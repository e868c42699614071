"""Captions and metadata beside items: found whatever their case and name, as lists, and never spelled as Python objects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.progress.captions import metadata_hints
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import format_of
from pipeline.sources.sidecars import CAPTION_FIELDS, Description, parse_sidecars
from pipeline.storage.store import Store
from tests.sources.test_sources import read_items, write_tar

BESIDE: list[tuple[str, str, str | None]] = [
    ("a.mp4", "a.txt", "here"),
    ("a.mp4", "a.caption", "here"),
    ("a.mp4", "a.mp4.txt", "here"),
    ("a.mp4", "a.mp4.caption", "here"),
    ("CLIP.MP4", "CLIP.TXT", "here"),
    ("CLIP.MP4", "CLIP.MP4.Txt", "here"),
    ("b.jpg", "b.Caption", "here"),
    ("Mr. Bean.mp4", "Mr. Bean.txt", "here"),
    ("a-1.mp4", "a-2.txt", None),
    ("a.mp4", "a.srt", None),
    ("a.mp4", "ab.txt", None),
]


@pytest.mark.parametrize(("video", "beside", "caption"), BESIDE)
@pytest.mark.parametrize("place", ["folder", "pattern", "s3", "tar"])
def test_the_text_of_an_item_is_found_whatever_its_case(
    tmp_path: Path, recipe: Recipe, s3: str, place: str, video: str, beside: str, caption: str | None
) -> None:
    content = {video: b"1", beside: b"here\n", "z.mp4": b"2", "z.txt": b"other"}
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    source = str(folder)
    if place == "pattern":
        source = f"{folder}/*.[mMj][pP][4g]"
    elif place == "tar":
        source = str(write_tar(tmp_path / "a.tar", list(content.items())))
    elif place == "s3":
        source = f"{s3}/videos"
        for name, data in content.items():
            Store(s3).put(f"videos/{name}", data)
    found = {
        item.key.partition(".")[0]: item.caption for item in read_items(tmp_path, recipe, source) if not item.fault
    }
    assert found == {video.partition(".")[0]: caption, "z": "other"}


def test_names_that_sort_apart_from_their_videos_are_found(tmp_path: Path, recipe: Recipe, s3: str) -> None:
    """The listing of a unit's part of a folder begins and ends where the names of its sidecar files do."""
    names = ["a.b.mp4", "a.mp4", "a-b.mp4", "sub/a.mp4", "sub/deep/z.mp4", "é.mp4", "z.mp4"]
    store = Store(s3)
    for name in names:
        store.put(f"v/{name}", b"1")
        store.put(f"v/{name.removesuffix('.mp4')}.txt", name.encode())
    for one_each in (1, 3, 100):
        found = read_items(tmp_path / str(one_each), dataclasses.replace(recipe, unit_clips=one_each), f"{s3}/v")
        assert {item.key: item.caption for item in found} == {name: name for name in names}


def test_the_preferred_text_is_taken(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("a.mp4", "a.mp4.txt", "a.TXT", "a.caption", "a.json"):
        (tmp_path / name).write_text('{"caption": "json"}' if name == "a.json" else name)
    order = []
    for name in ("a.TXT", "a.caption", "a.mp4.txt", "a.json"):
        order.append(read_items(tmp_path / f"plan of {name}", recipe, str(tmp_path))[0].caption)
        (tmp_path / name).unlink()
    assert order == ["a.TXT", "a.caption", "a.mp4.txt", "json"]


def test_files_of_operating_systems_are_passed_over(tmp_path: Path, recipe: Recipe) -> None:
    names = ["._0.mp4", "0.mp4", "._0.txt", "0.txt", ".DS_Store", "__MACOSX/0.mp4", "__MACOSX/._0.mp4", "Thumbs.db"]
    (tmp_path / "v" / "__MACOSX").mkdir(parents=True)
    for name in names:
        (tmp_path / "v" / name).write_bytes(b"caption")
    tar = write_tar(tmp_path / "a.tar", [(name, b"caption") for name in names])
    for number, source in enumerate([tmp_path / "v", tmp_path / "v" / "*.mp4", tar]):
        (item,) = read_items(tmp_path / str(number), recipe, str(source))
        assert (item.key.partition(".")[0], item.ordinal, item.caption, item.fault) == ("0", 0, "caption", None)


def described(value: bytes, columns: tuple[str, ...] = ()) -> Description:
    return parse_sidecars({"json": value}, columns)


@pytest.mark.parametrize(
    ("values", "caption", "captions"),
    [
        ({"caption": "a"}, "a", None),
        ({"Caption": "a"}, "a", None),
        ({"TEXT": "a", "caption": None}, "a", None),
        ({"prompt": "a"}, "a", None),
        ({"caption": "a", "prompt": "b"}, "a", None),
        ({"caption": ["a", "b"]}, "a", ["a", "b"]),
        ({"captions": ["a", None, "b"]}, "a", ["a", "b"]),
        ({"caption": ["a"]}, "a", None),
        ({"caption": []}, None, None),
        ({"caption": {"short": "a", "long": "b"}}, None, None),
        ({"caption": {"short": "a"}, "text": "b"}, "b", None),
        ({"caption": [{"text": "a"}]}, None, None),
        ({"caption": 7}, "7", None),
        ({"caption": True}, None, None),
        ({"title": "a"}, None, None),
    ],
)
def test_captions_in_json(values: dict[str, object], caption: str | None, captions: list[str] | None) -> None:
    found = described(json.dumps(values).encode())
    assert (found.caption, found.captions, found.note) == (caption, captions, None)
    assert json.loads(found.meta["meta"]) == values
    assert found.caption is None or any(name.lower() in CAPTION_FIELDS for name in values)


def test_text_comes_before_the_captions_of_json() -> None:
    found = parse_sidecars({"txt": b"b", "json": b'{"captions": ["a", "b", "c"]}'}, ())
    assert (found.caption, found.captions) == ("b", ["b", "a", "c"])
    found = parse_sidecars({"txt": b"b", "json": b'{"caption": "a"}'}, ())
    assert (found.caption, found.captions) == ("b", None)


def test_an_empty_text_does_not_hide_the_captions_of_json() -> None:
    for text in (b"", b" \n", b"\xef\xbb\xbf"):
        found = parse_sidecars({"txt": text, "json": b'{"captions": ["a", "b"]}'}, ())
        assert (found.caption, found.captions) == ("a", ["a", "b"])
        assert parse_sidecars({"txt": text, "json": b'{"x": 1}'}, ()).caption == ""


def test_byte_order_marks_are_taken_off() -> None:
    bom = b"\xef\xbb\xbf"
    found = parse_sidecars({"txt": bom + b"a", "json": bom + b'{"x": 1}'}, ("x:int",))
    assert (found.caption, found.meta) == ("a", {"meta": '{"x": 1}', "meta_x": 1})


def test_nan_and_infinity_become_null_with_a_note() -> None:
    found = described('{"caption": "NaN é", "x": NaN, "y": [-Infinity, {"z": Infinity}]}'.encode(), ("x:float",))
    assert (found.caption, found.note, found.meta["meta_x"]) == ("NaN é", "nan_to_null", None)
    assert json.loads(found.meta["meta"]) == {"caption": "NaN é", "x": None, "y": [None, {"z": None}]}
    for other in (b'{"x": 1e999}', b'{"x": nan}', b'{"x": NaN', b"NaN"):
        with pytest.raises(ValueError):
            described(other)


def test_what_lies_beside_a_folder_without_captions_is_named(tmp_path: Path) -> None:
    def hint(url: str) -> str:
        (source,) = find_sources([url])
        return format_of(source).caption_hint(source)

    cog = tmp_path / "cog"
    for folder in ("videos", "labels"):
        (cog / folder).mkdir(parents=True)
        for number in range(2):
            (cog / folder / f"{number}.{'mp4' if folder == 'videos' else 'txt'}").write_text("x")
    for url in (str(cog), str(cog / "videos")):
        assert f"'file://{cog}/labels/' holds as many text files as there are videos" in hint(url)
    (cog / "labels" / "2.txt").write_text("x")
    assert "'file://" in hint(str(cog)) and "holds 3 text files" in hint(str(cog))
    (cog / "videos" / "0.json").write_text("{}")
    assert "labels" in hint(str(cog)), "JSON beside a video is no table"
    for name in ("captions.jsonl", "metadata.csv"):
        (cog / "videos" / name).write_text("x")
        assert (
            hint(str(cog))
            == f"'file://{cog}/videos/{name}' lies beside the videos; if it holds captions, give it as --source"
        )
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "0.mp4").write_text("x")
    assert hint(str(plain)) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            ('{"x": ' + "[" * depth + "NaN" + "]" * depth + "}", "more than 200 lists")
            for depth in (200, 900, 3000, 100_000)
        ),
        *(('{"x": ' * depth + "1" + "}" * depth, "more than 200 lists") for depth in (201, 900, 3000, 100_000)),
        ('{"x": 1' + "0" * 5000 + "}", "a number has 5001 digits; the limit is 4300"),
        ('{"x": 1e400}', "a number is too large"),
    ],
    ids=lambda value: value[:8],
)
def test_json_beside_a_video_that_python_cannot_hold_is_a_reject(
    tmp_path: Path, recipe: Recipe, content: str, message: str
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"1")
    (tmp_path / "videos" / "a.json").write_text(content)
    (item,) = read_items(tmp_path, recipe, str(tmp_path / "videos"))
    assert item.fault is not None and item.fault.name == "read/bad_sidecar" and message in item.fault.message


def test_the_deepest_json_that_is_accepted_goes_through_every_step(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"1")
    (tmp_path / "videos" / "a.json").write_text('{"x": ' + "[" * 199 + 'NaN, "two words"' + "]" * 199 + "}")
    (item,) = read_items(tmp_path, recipe, str(tmp_path / "videos"))
    assert item.fault is None and "null" in item.meta["meta"]
    assert "in x;" in metadata_hints([item.meta])[0]

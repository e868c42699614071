"""Tars as people write them: members apart, archives joined, several videos of one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import Recipe
from pipeline.sources.tar import runs
from pipeline.storage.store import Store
from tests.sources.test_sources import content_of, read_items, write_tar

Outcome = tuple[str, str | None, str | None]


def outcomes(tmp_path: Path, recipe: Recipe, names: list[str]) -> list[Outcome]:
    """Key, caption and reason of the reject of every item of a tar whose members contain their own names."""
    for plan in (tmp_path / "plan-out").rglob("*.parquet"):
        plan.unlink()
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    found = read_items(tmp_path, recipe, str(path))
    assert [item.ordinal for item in found] == list(range(len(found)))
    for item in found:
        assert item.fault or content_of(item, recipe).decode() == item.uri.rpartition("#")[2]
    return [(item.key, item.caption, item.fault and item.fault.reason) for item in found]


JOINED: list[Outcome] = [("0", "0.txt", None), ("1", "1.txt", None)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("0.mp4 1.mp4 0.txt 1.txt", JOINED),
        ("0.txt 1.txt 0.mp4 1.mp4", JOINED),
        ("1.txt 0.mp4 0.txt 1.mp4", JOINED),
        ("0.mp4 0.pth 1.mp4 1.txt 0.txt", JOINED),
        ("0.mp4 0.txt 1.mp4", [JOINED[0], ("1", None, None)]),
        ("0.mp4 1.mp4", [("0", None, None), ("1", None, None)]),
        ("0.mp4 1.mp4 0.mp4", [("0", None, None), ("1", None, None), ("0", None, None)]),
        ("2.txt 0.mp4 0.txt", [("2", None, "no_media"), JOINED[0]]),
        ("0.mp4 1.mp4 0.mp4 0.txt 1.txt", [("0", None, None), JOINED[1], JOINED[0]]),
        (
            "0.mp4 1.mp4 0.mp4 1.txt 0.txt",
            [("0", None, "members_apart"), JOINED[1], ("0", None, "members_apart"), ("0", None, "members_apart")],
        ),
        ("0.mp4 0.txt 1.mp4 1.txt 0.txt", [*JOINED, ("0", None, "members_apart")]),
        (
            "0.mp4 1.mp4 0.txt 1.txt 0.txt",
            [("0", None, "members_apart"), JOINED[1], *[("0", None, "members_apart")] * 2],
        ),
    ],
)
def test_members_that_stand_apart_are_joined_or_rejected(
    tmp_path: Path, recipe: Recipe, names: str, expected: list[Outcome]
) -> None:
    assert outcomes(tmp_path, recipe, names.split()) == expected


def test_json_that_stands_apart_is_joined_too(tmp_path: Path, recipe: Recipe) -> None:
    content = [("0.mp4", b"0"), ("1.mp4", b"1"), ("0.json", b'{"caption": ["a", "b"], "x": 1}'), ("1.json", b"{")]
    first, second = read_items(tmp_path, recipe, str(write_tar(tmp_path / "a.tar", content)))
    assert (first.caption, first.captions, first.meta) == ("a", ["a", "b"], {"meta": '{"caption": ["a", "b"], "x": 1}'})
    assert second.fault and second.fault.reason == "bad_sidecar"


def test_members_apart_are_joined_on_s3(tmp_path: Path, recipe: Recipe, s3: str) -> None:
    content = [(f"{n}.mp4", bytes([n]) * 100_000) for n in range(4)] + [(f"{n}.txt", b"c%d" % n) for n in range(4)]
    Store(s3).put("a.tar", write_tar(tmp_path / "a.tar", content).read_bytes())
    found = read_items(tmp_path, recipe, f"{s3}/a.tar")
    assert [(item.key, item.caption, item.content) for item in found] == [
        (f"{n}", f"c{n}", bytes([n]) * 100_000) for n in range(4)
    ]


def test_headers_are_read_once_and_only_if_a_caption_is_missing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(runs, "members", lambda file: opened.append(file) or iter(()))
    outcomes(tmp_path, recipe, "0.mp4 0.txt 1.mp4 1.caption".split())
    assert not opened
    outcomes(tmp_path, recipe, "0.mp4 1.mp4 2.mp4 3.txt".split())
    assert len(opened) == 1


def test_the_memory_for_members_apart_is_bounded(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_RUNS", 2)
    names = "0.mp4 1.mp4 2.mp4 0.txt 1.txt 2.txt".split()
    assert outcomes(tmp_path, recipe, names) == [*JOINED, ("2", None, None), ("2", None, "no_media")]


def test_archives_behind_the_end_mark_are_read_and_other_data_is_a_reject(tmp_path: Path, recipe: Recipe) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", [(f"{n}.mp4", b"%d" % n), (f"{n}.txt", b"c")]) for n in range(3)]
    data = b"".join(path.read_bytes() for path in parts)
    (tmp_path / "a.tar").write_bytes(data)
    found = read_items(tmp_path / "x", recipe, f"{tmp_path}/a.tar")
    assert [(item.key, item.caption, item.content) for item in found] == [(f"{n}", "c", b"%d" % n) for n in range(3)]
    (tmp_path / "b.tar").write_bytes(data + b"no archive" * 100)
    *whole, rest = read_items(tmp_path / "y", recipe, f"{tmp_path}/b.tar")
    assert len(whole) == 3 and rest.fault and rest.fault.reason == "damaged_tar"
    assert "data that is no tar follows the end mark" in rest.fault.message
    (tmp_path / "c.tar").write_bytes(data + bytes(3 << 20))
    assert len(read_items(tmp_path / "z", recipe, f"{tmp_path}/c.tar")) == 3


def test_every_video_of_a_rejected_key_counts(tmp_path: Path, recipe: Recipe) -> None:
    names = [f"my.video.{n}.mp4" for n in range(3)]
    assert outcomes(tmp_path, recipe, [*names, "x.mp4"]) == [
        *((name, None, "several_media") for name in names),
        ("x", None, None),
    ]
    many = [f"my.video.{n}.{suffix}" for n in range(150) for suffix in ("mp4", "txt")]
    assert outcomes(tmp_path, recipe, many) == [
        (name, None, "too_many_members") for name in many if name.endswith("mp4")
    ]


def test_a_caption_of_a_name_with_dots_belongs_to_its_video(tmp_path: Path, recipe: Recipe) -> None:
    names = ["Mr. Bean.mp4", "Mr. Bean.txt", "a.v2.MP4", "a.V2.mp4.txt", "b.mp4", "b.tags.txt"]
    assert outcomes(tmp_path, recipe, names) == [
        ("Mr", "Mr. Bean.txt", None),
        ("a", "a.V2.mp4.txt", None),
        ("b", None, None),
    ]

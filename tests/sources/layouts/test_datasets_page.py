"""Runs the source of every command in jobs/guides/datasets.md on a small set in the layout that the command is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from jobs.arguments import parse_arguments
from pipeline.sources.item import Item
from tests.project.test_pages import commands
from tests.sources.layouts.test_folder_layouts import hub_cache, write
from tests.sources.test_sources import read_items, write_tar
from tests.support.paths import ROOT

COMMANDS = commands(ROOT / "jobs" / "guides" / "datasets.md")
Described = list[tuple[str, str | None, tuple[float, float | None] | None]]
"""Key, caption and range of every item."""


def plain(data: Path) -> Described:
    write(data / "plain", a__0DOTmp4="0", a__0DOTtxt="zero", a__0DOTjson='{"score": 1}', b__1DOTwebm="1")
    return [("a/0.mp4", "zero", None), ("b/1.webm", None, None)]


def tars(data: Path) -> Described:
    (data / "tars").mkdir()
    for number in range(2):
        write_tar(data / "tars" / f"0000{number}.tar", [(f"{number}.mp4", b"v"), (f"{number}.txt", b"text")])
    return [("0", "text", None), ("1", "text", None)]


def videofolder(data: Path) -> Described:
    """huggingface.co/docs/datasets/video_dataset."""
    write(data / "videofolder" / "train", **{"0001DOTmp4": "1", "0002DOTmp4": "2"})
    rows = [
        {"file_name": f"000{n}.mp4", "text": text} for n, text in ((2, "a golden retriever"), (1, "a german shepherd"))
    ]
    (data / "videofolder" / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [("train/0001.mp4", "a german shepherd", None), ("train/0002.mp4", "a golden retriever", None)]


def snapshot(data: Path) -> Described:
    hub_cache(data / "hub")
    return [("train/a.mp4", "from a link", None), ("train/b.mp4", "from a table", None)]


def kinetics(data: Path) -> Described:
    """The layout of github.com/cvdfoundation/kinetics-dataset."""
    write(data / "kinetics" / "train", abseiling__aDOTmp4="a", air_drumming__bDOTmp4="b")
    return [("abseiling/a.mp4", None, None), ("air_drumming/b.mp4", None, None)]


def finetrainers(data: Path) -> Described:
    """github.com/a-r-r-o-w/finetrainers, docs/dataset/README.md."""
    folder = write(data / "finetrainers", videos__00000DOTmp4="0", videos__00001DOTmp4="1")
    write(folder, promptsDOTtxt="A rabbit\nA goat\n", videosDOTtxt="videos/00000.mp4\nvideos/00001.mp4\n")
    return [("videos/00000.mp4", "A rabbit", None), ("videos/00001.mp4", "A goat", None)]


def lerobot(data: Path) -> Described:
    shutil.copytree(Path(__file__).parent / "lerobot", data / "lerobot")
    tasks, ranges = ["pick the cube", "place the cube", "open the drawer"], [(0.0, 1.0), (1.0, 2.5), (2.5, 4.5)]
    keys = [f"observation.images.top/episode_{number:06d}" for number in range(3)]
    return list(zip(keys, tasks, ranges, strict=True))


def lance_table(data: Path) -> Described:
    table = pa.table({"id": ["x", "y"], "caption": ["one", "two"], "video": pa.array([b"1", b"2"], pa.large_binary())})
    lance.write_dataset(table, str(data / "clips.lance"))
    return [("x", "one", None), ("y", "two", None)]


SETS: list[Callable[[Path], Described]] = [
    *(plain, tars, videofolder, snapshot, kinetics, finetrainers, lerobot, lance_table),
]
"""A function per command of the page, in its order: it writes the set below a folder and returns its items."""


def test_every_command_has_a_set() -> None:
    assert len(COMMANDS) == len(SETS) and (ROOT / "jobs" / "guides" / "datasets.md").exists()


@pytest.mark.parametrize(
    ("words", "make"), list(zip(COMMANDS, SETS, strict=False)), ids=[make.__name__ for make in SETS]
)
def test_a_command_of_the_page_finds_the_items(
    tmp_path: Path, words: list[str], make: Callable[[Path], Described], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    expected = make(tmp_path)
    arguments = parse_arguments([word.replace("/data/", f"{tmp_path}/") for word in words[2:]], "")
    found = read_items(tmp_path, arguments.recipe("0" * 64), *arguments.run().sources)
    assert [(item.key, item.caption, item.range) for item in found] == expected
    assert [reject_of(item) for item in found] == [None] * len(expected)


def reject_of(item: Item) -> str | None:
    """The fault of an item, or that its file is not there."""
    if item.fault is not None:
        return str(item.fault)
    is_local = item.content is None and item.location.startswith("/")
    return f"no file {item.location}" if is_local and not Path(item.location).exists() else None

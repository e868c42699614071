"""Files with ``::`` in their names, and patterns in folders with links."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.formats import plan_units
from pipeline.sources.units import Plan
from tests.sources.test_sources import content_of, read_items, write_tar

NAME = "a::b.mp4"
ODD_NAMES = (NAME, "::x.mp4", "zip::y.mp4", "file::z.mp4", "s3::w.mp4", "a b#c?d%41&é.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in::put").mkdir()
    for number, name in enumerate(ODD_NAMES):
        (tmp_path / "in::put" / name).write_bytes(b"%d" % number)
    (tmp_path / "in::put" / "a::b.txt").write_text("a caption")
    return tmp_path / "in::put"


@pytest.mark.parametrize("pattern", ["", "/*.mp4", f"/{{{','.join(ODD_NAMES[:-1])}}}"])
def test_a_name_with_two_colons_is_an_ordinary_name(tmp_path: Path, folder: Path, recipe: Recipe, pattern: str) -> None:
    found = read_items(tmp_path, recipe, f"{folder}{pattern}")
    names = ODD_NAMES if "{" not in pattern else ODD_NAMES[:-1]
    assert {item.key: content_of(item, recipe) for item in found} == {
        name: b"%d" % number for number, name in enumerate(names)
    }
    assert {item.key: item.caption for item in found}[NAME] == "a caption"


def test_a_row_may_name_such_a_file(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    rows = [*ODD_NAMES, str(folder / NAME), f"file://{folder}/{NAME}", "simplecache::file:///etc/passwd"]
    pq.write_table(pa.table({"path": rows}), folder / "m.parquet")
    *good, chain = read_items(tmp_path, recipe, str(folder / "m.parquet"))
    assert [content_of(item, recipe) for item in good] == [b"0", b"1", b"2", b"3", b"4", b"5", b"0", b"0"]
    assert chain.fault is not None and chain.fault.name == "fetch/forbidden_url"
    assert "chains file systems" in chain.fault.message


def test_single_files_tars_and_manifests_may_have_such_names(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    write_tar(tmp_path / "t::t.tar", [("x::y.mp4", b"tar")])
    (tmp_path / "m::m.jsonl").write_text('{"path": "in::put/a::b.mp4"}\n')
    specs = [f"one={folder}/{NAME}", str(tmp_path / "t::t.tar"), str(tmp_path / "m::m.jsonl")]
    found = read_items(tmp_path, recipe, *specs)
    assert [content_of(item, recipe) for item in found] == [b"0", b"tar", b"0"]


def test_keys_of_a_store_may_have_two_colons(tmp_path: Path, recipe: Recipe, s3: str) -> None:
    fs = s3fs.S3FileSystem()
    for name in (NAME, "x::http:/y.mp4", "a::b.txt"):
        fs.pipe_file(f"{s3.removeprefix('s3://')}/videos/{name}", name.encode())
    for spec in (f"{s3}/videos", f"{s3}/videos/*.mp4"):
        found = read_items(tmp_path / spec[-1], recipe, spec)
        contents = {item.key: content_of(item, recipe) for item in found}
        assert contents[NAME] == NAME.encode() and len(contents) == 1 + (spec == f"{s3}/videos")


@pytest.mark.parametrize("url", ["simplecache::s3://b/x.tar", "zip://a.mp4::s3://b/x.zip", "tar::file:///x.tar"])
def test_a_chain_that_a_user_gives_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"chains file systems|are not supported"):
        find_sources([url])


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder whose links lead to its own files, to files outside, and to a folder outside."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for path in (inside / "sub", outside / "far"):
        path.mkdir(parents=True)
    (inside / "a.mp4").write_bytes(b"a")
    (inside / "sub" / "b.mp4").write_bytes(b"b")
    (outside / "secret.mp4").write_bytes(b"secret")
    (outside / "far" / "secret.mp4").write_bytes(b"secret")
    (inside / "link_in.mp4").symlink_to(inside / "sub" / "b.mp4")
    (inside / "link_out.mp4").symlink_to(outside / "secret.mp4")
    (inside / "link_up.mp4").symlink_to("../outside/secret.mp4")
    (inside / "folder_out").symlink_to(outside / "far")
    (inside / "gone.mp4").symlink_to(outside / "gone.mp4")
    return inside


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.mp4", {"a.mp4", "link_in.mp4"}),
        ("[al]*.mp4", {"a.mp4", "link_in.mp4"}),
        ("{a,link_*}.mp4", {"a.mp4", "link_in.mp4"}),
        ("**/*.mp4", {"a.mp4", "link_in.mp4", "b.mp4"}),
        ("*/*.mp4", {"b.mp4"}),
    ],
)
def test_a_pattern_follows_no_link_out_of_its_folder(
    tmp_path: Path, linked: Path, recipe: Recipe, pattern: str, keys: set[str]
) -> None:
    notes: list[str] = []
    sources = find_sources([f"{linked}/{pattern}"])
    plan_units(Plan(units=[], columns=[]), sources, recipe, notes.append)
    is_said = any(f"links lead out of '{linked}' and are passed over" in note for note in notes)
    assert is_said or pattern == "*/*.mp4"  # wildcards enter no folder that is a link
    found = read_items(tmp_path, recipe, f"{linked}/{pattern}")
    assert {item.key for item in found} == keys
    assert b"secret" not in {content_of(item, recipe) for item in found}


@pytest.mark.parametrize("pattern", ["{a,link_out}.mp4", "{link_out,a}.mp4", "{sub/b,folder_out/secret}.mp4"])
def test_names_in_braces_that_lead_out_are_refused_by_name(linked: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"(link_out|secret)\.mp4' is a link that leads out of .*of its own"):
        find_sources([f"{linked}/{pattern}"])


def test_a_pattern_that_only_links_out_says_so(linked: Path) -> None:
    with pytest.raises(ConfigError, match=r"no videos.*2 links lead out"):
        find_sources([f"{linked}/link_[ou]*.mp4"])


def test_a_user_may_name_a_link_or_a_folder_above(
    tmp_path: Path, linked: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = read_items(tmp_path / "1", recipe, str(linked / "link_out.mp4"))
    assert content_of(item, recipe) == b"secret"
    monkeypatch.chdir(linked)
    found = read_items(tmp_path / "2", recipe, "x=../{inside/a,outside/secret}.mp4")
    assert {content_of(item, recipe) for item in found} == {b"a", b"secret"}


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path: Path, recipe: Recipe) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_bytes(b"video")
    (snapshot / "a.mp4").symlink_to("../../blobs/hash")
    (item,) = read_items(tmp_path, recipe, f"{snapshot}/*.mp4")
    assert content_of(item, recipe) == b"video"

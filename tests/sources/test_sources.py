"""Finding, planning and reading tars, manifests and folders, local and on S3."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, Rejected, SourceChanged
from pipeline.output.plan import freeze_plan, read_plan
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.sources.formats import items
from pipeline.sources.item import Item
from pipeline.sources.units import Plan, Source
from pipeline.storage.store import Store
from pipeline.storage.urls import canonical


def write_tar(path: Path, members: list[tuple[str, bytes]], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def planned(tmp_path: Path, recipe: Recipe, *specs: str) -> tuple[list[Source], Plan]:
    sources = find_sources(specs)
    return sources, freeze_plan(Store(str(tmp_path / "plan-out")), sources, recipe)


def read_items(tmp_path: Path, recipe: Recipe, *specs: str) -> list[Item]:
    sources, plan = planned(tmp_path, recipe, *specs)
    urls = {source.name: source.url for source in sources}
    return [
        item for unit in plan.units for item in items(unit, urls[unit.source], recipe, plan.columns[unit.generation])
    ]


def content_of(item: Item, recipe: Recipe) -> bytes:
    """What is fetched. Decoders get the same descriptor, so no write through it may succeed."""
    with fetch(item, recipe) as f:
        with pytest.raises(OSError):
            os.pwrite(f.fileno(), b"changed", 0)
        with pytest.raises((OSError, ValueError)):
            os.ftruncate(f.fileno(), 0)
        f.seek(0)
        return f.read()


def test_each_path_of_a_pattern_is_a_source(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"v-{i:02d}.tar", [("a.mp4", b"1")])
    names = [f"file://{tmp_path}/v-{i:02d}.tar" for i in range(3)]
    assert [s.name for s in find_sources([f"{tmp_path}/v-{{00..02}}.tar"])] == names
    assert [s.name for s in find_sources([f"{tmp_path}/*.tar"])] == names
    assert [s.name for s in find_sources([f"train={tmp_path}/*.tar"])] == [f"train/v-{i:02d}.tar" for i in range(3)]
    assert [s.name for s in find_sources([f"train={names[1]}"])] == ["train"]


def test_an_existing_path_with_an_equals_sign_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools like Hive and Spark write folders such as ``date=2024``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "date=2024").mkdir()
    write_tar(tmp_path / "date=2024" / "0.tar", [("a.mp4", b"1")])
    name = f"file://{tmp_path}/date=2024/0.tar"
    for spec in ("date=2024/0.tar", "date=2024/*.tar", "date=2024/{0..0}.tar", f"{tmp_path}/date=2024/0.tar"):
        assert [source.name for source in find_sources([spec])] == [name]
    assert [source.name for source in find_sources(["x=date=2024/0.tar"])] == ["x"]
    with pytest.raises(ConfigError, match="there is no file"):
        find_sources(["date=2025/0.tar"])


def test_a_pattern_without_matches_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for spec, message in [
        (f"{tmp_path}/*.tar", r"\*\.tar"),
        (f"{tmp_path}/empty", "no videos or images below"),
        (f"{tmp_path}/nowhere", "nowhere"),
        (f"{tmp_path}/missing.tar", "there is no file"),
        ("pipe://cat x", "not supported"),
        (f"{tmp_path}/{{00..02.tar", "has a brace without its partner"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_sources([spec])
    write_tar(tmp_path / "empty" / "a.tar", [("a.mp4", b"1")])
    with pytest.raises(ConfigError, match=r"it holds tars: give '.*/\*\.tar'"):
        find_sources([str(tmp_path / "empty")])


def test_every_item_of_a_tar_has_an_end_in_it(tmp_path: Path, recipe: Recipe) -> None:
    """The dry run divides by it, also when it stops within the last key of a tar."""
    path = write_tar(tmp_path / "a.tar", [(name, b"1") for name in ("a.mp4", "b.0.mp4", "b.1.mp4", "b.2.mp4")])
    found = read_items(tmp_path, recipe, str(path))
    assert [item.key for item in found] == ["a", "b.0.mp4", "b.1.mp4", "b.2.mp4"]
    first, *rest = (item.end_byte for item in found)
    assert 0 < first < rest[0] <= path.stat().st_size and len(set(rest)) == 1


def test_the_same_source_twice_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.mp4", b"1")])
    with pytest.raises(ConfigError, match="given twice"):
        find_sources([f"{tmp_path}/a.tar", f"file://{tmp_path}/a.tar"])


def test_a_folder_gives_its_media_sorted_with_captions_beside_them(tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name, content in {
        "b.mp4": b"b",
        "b.txt": b"a caption\n",
        "sub/a.webm": b"a",
        "sub/a.json": b'{"caption": "from json", "score": 7}',
        "c.png": b"c",
        "notes.md": b"",
    }.items():
        (folder / name).write_bytes(content)
    os.symlink(folder / "b.mp4", folder / "link.mp4")
    recipe = dataclasses.replace(recipe, columns=("score:int",))
    found = read_items(tmp_path, recipe, str(folder))
    assert [(i.ordinal, i.key, i.caption) for i in found] == [
        (0, "b.mp4", "a caption"),
        (1, "c.png", None),
        (2, "sub/a.webm", "from json"),
    ]
    assert found[2].meta == {"meta": '{"caption": "from json", "score": 7}', "meta_score": 7}
    assert [content_of(item, recipe) for item in found] == [b"b", b"c", b"a"]


def test_files_given_by_pattern_are_a_folder(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("a.mp4", "b.mp4", "c.mkv"):
        (tmp_path / name).write_bytes(name.encode())
    found = read_items(tmp_path, recipe, f"{tmp_path}/*.mp4")
    assert [(i.key, i.uri) for i in found] == [(n, f"file://{tmp_path}/{n}") for n in ("a.mp4", "b.mp4")]


def test_a_tar_gives_an_item_per_key_as_webdataset_groups_it(tmp_path: Path, recipe: Recipe) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("x/0001.mp4", b"video"),
            ("x/0001.txt", "größer".encode()),
            ("x/0001.json", b'{"fps": 24}'),
            ("x/0002.jpg", b"thumbnail"),
            ("x/0002.v2.mp4", b"second"),
            ("x/0003.json", b"{}"),
            ("x/0004.mp4", b"1"),
            ("x/0004.webm", b"2"),
            ("x/0005.mp4", b"5"),
            ("x/0005.json", b"{broken"),
        ],
        links={"x/0006.mp4": "/etc/passwd"},
    )
    found = read_items(tmp_path, recipe, f"{tmp_path}/a.tar")
    assert [(i.ordinal, i.key, i.fault and i.fault.reason) for i in found] == [
        (0, "x/0001", None),
        (1, "x/0002", None),
        (2, "x/0003", "no_media"),
        (3, "x/0004.mp4", "several_media"),
        (4, "x/0004.webm", "several_media"),
        (5, "x/0005", "bad_sidecar"),
        (6, "x/0006", "not_a_file"),
    ]
    assert found[0].caption == "größer" and found[0].meta["meta"] == '{"fps": 24}'
    assert found[0].uri == f"file://{tmp_path}/a.tar#x/0001.mp4"
    assert [content_of(item, recipe) for item in found[:2]] == [b"video", b"second"]
    with pytest.raises(Rejected):
        fetch(found[2], recipe)


def test_a_cut_tar_gives_what_is_whole_and_a_reject_for_the_rest(tmp_path: Path, recipe: Recipe) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}.mp4", bytes([i]) * 600) for i in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * (512 + 1024) + 512 + 100])
    found = read_items(tmp_path, recipe, str(path))
    assert [(i.key, i.fault and i.fault.reason) for i in found] == [("0", None), ("1", None), ("2", "damaged_tar")]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_manifests_carry_every_other_column_through(tmp_path: Path, recipe: Recipe, suffix: str) -> None:
    (tmp_path / "videos").mkdir()
    for i in range(10):
        (tmp_path / "videos" / f"{i}.mp4").write_bytes(b"%d" % i)
    rows = [
        {"path": f"videos/{i}.mp4", "caption": f'say "{i}",\nplease', "score": i / 2, "n": i, "tag": None if i else "x"}
        for i in range(10)
    ]
    manifest = tmp_path / f"m.{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pq.write_table(table, manifest, row_group_size=3)
    elif suffix == "csv":
        pa.csv.write_csv(table, manifest)
    else:
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, plan = planned(tmp_path, recipe, str(manifest))
    assert [(u.start, u.stop) for u in plan.units] == [(0, 4), (4, 8), (8, 10)]
    assert [str(plan.columns[0].field(f"meta_{name}").type) for name in ("score", "n", "tag")] == [
        "double",
        "int64",
        "string",
    ]
    found = read_items(tmp_path, recipe, str(manifest))
    assert [item.ordinal for item in found] == list(range(10))
    assert [item.key for item in found] == [row["path"] for row in rows]
    assert [item.caption for item in found] == [row["caption"] for row in rows]
    assert [item.meta for item in found] == [
        {"meta_score": row["score"], "meta_n": row["n"], "meta_tag": row["tag"]} for row in rows
    ]
    assert [content_of(item, recipe) for item in found] == [b"%d" % i for i in range(10)]


def test_manifest_targets_that_are_absent_or_forbidden_are_rejects(tmp_path: Path, recipe: Recipe) -> None:
    targets = ["gone.mp4", "pipe://cat /etc/passwd", "zip://x::file:///etc/passwd", ""]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"url": t}) + "\n" for t in targets))
    found = read_items(tmp_path, recipe, f"{tmp_path}/m.jsonl")
    reasons = []
    for item in found:
        with pytest.raises(Rejected) as failure:
            fetch(item, recipe)
        reasons.append(failure.value.reject.reason)
    assert reasons == ["not_found", "forbidden_url", "forbidden_url", "no_path"]


def test_a_manifest_on_s3_cannot_reach_local_files(s3: str, tmp_path: Path, recipe: Recipe) -> None:
    Store(s3).put("m.jsonl", b'{"path": "/etc/passwd"}\n{"path": "a.mp4"}\n')
    Store(s3).put("a.mp4", b"video")
    found = read_items(tmp_path, recipe, f"{s3}/m.jsonl")
    assert found[0].fault is not None and found[0].fault.reason == "forbidden_url"
    assert content_of(found[1], recipe) == b"video" and found[1].uri == f"{s3}/a.mp4"


def test_tars_and_folders_are_read_from_s3(s3: str, tmp_path: Path, recipe: Recipe) -> None:
    tar = write_tar(tmp_path / "a.tar", [("1.mp4", b"one"), ("1.txt", b"caption")]).read_bytes()
    store = Store(s3)
    for i in range(2):
        store.put(f"tars/{i}.tar", tar)
    store.put("folder/x.mp4", b"x")
    store.put("folder/x.txt", b"about x")
    found = read_items(tmp_path, recipe, f"{s3}/tars/*.tar", f"{s3}/folder")
    assert [(i.key, i.caption) for i in found] == [("1", "caption"), ("1", "caption"), ("x.mp4", "about x")]
    assert [content_of(item, recipe) for item in found] == [b"one", b"one", b"x"]


def test_ambiguous_and_missing_columns_are_refused_by_name(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "url": "b.mp4"}\n')
    with pytest.raises(ConfigError, match="--path-column"):
        planned(tmp_path, recipe, f"{tmp_path}/m.jsonl")
    chosen = dataclasses.replace(recipe, path_column="url")
    assert read_items(tmp_path, chosen, f"{tmp_path}/m.jsonl")[0].key == "b.mp4"
    with pytest.raises(ConfigError, match="named where"):
        planned(tmp_path / "other", dataclasses.replace(recipe, path_column="where"), f"{tmp_path}/m.jsonl")


def test_a_source_that_changed_after_planning_stops_the_job_by_name(tmp_path: Path, recipe: Recipe) -> None:
    write_tar(tmp_path / "a.tar", [("1.mp4", b"one")])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v.mp4").write_bytes(b"1")
    sources, plan = planned(tmp_path, recipe, f"{tmp_path}/a.tar", str(tmp_path / "videos"))
    write_tar(tmp_path / "a.tar", [("1.mp4", b"one"), ("2.mp4", b"two")])
    (tmp_path / "videos" / "v.mp4").write_bytes(b"12")
    tar, folder = plan.units
    with pytest.raises(SourceChanged, match=r"a\.tar"):
        list(items(tar, sources[0].url, recipe, plan.columns[0]))
    (item,) = items(folder, sources[1].url, recipe, plan.columns[0])
    with pytest.raises(SourceChanged, match=r"v\.mp4"):
        fetch(item, recipe)
    with pytest.raises(SourceChanged, match=r"a\.tar"):
        planned(tmp_path, recipe, f"{tmp_path}/a.tar")


def test_growing_the_input_adds_units_and_moves_none(tmp_path: Path, recipe: Recipe) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "bdfhj":
        (videos / f"{name}.mp4").write_bytes(name.encode())
    _, before = planned(tmp_path, recipe, str(videos))
    for name in "ac":
        (videos / f"{name}.mp4").write_bytes(name.encode())
    write_tar(tmp_path / "a.tar", [("1.mp4", b"one")])
    _, after = planned(tmp_path, recipe, str(videos), f"{tmp_path}/a.tar")
    assert after.units[: len(before.units)] == before.units
    grown, tar = after.units[len(before.units) :]
    assert [file.path for file in grown.files] == ["a.mp4", "c.mp4"] and (grown.start, grown.stop) == (5, 7)
    assert (tar.format, tar.generation) == ("tar", 1)
    assert read_plan(Store(str(tmp_path / "plan-out"))) == after
    assert len({unit.name for unit in after.units}) == len(after.units)


def test_equal_stems_in_different_folders_give_different_units(tmp_path: Path, recipe: Recipe) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "a.tar", [("1.mp4", b"one")])
    _, plan = planned(tmp_path, recipe, f"{tmp_path}/x/a.tar", f"{tmp_path}/y/a.tar")
    assert len({unit.name for unit in plan.units}) == 2
    assert all(unit.name.startswith("a-") for unit in plan.units)


def test_two_types_of_one_column_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "a.mp4", "score": 1.5}\n')
    (tmp_path / "b.jsonl").write_text('{"path": "b.mp4", "score": "high"}\n')
    with pytest.raises(ConfigError, match=r"column 'score' is string in .* and double"):
        planned(tmp_path, recipe, f"{tmp_path}/*.jsonl")
    shutil.rmtree(tmp_path / "plan-out", ignore_errors=True)


def test_keys_of_s3_keep_their_question_marks_and_hashes(s3: str, tmp_path: Path, recipe: Recipe) -> None:
    tar = write_tar(tmp_path / "a.tar", [("1.mp4", b"one")]).read_bytes()
    store = Store(s3)
    names = ["x#1", "x#2", "q?1"]
    for name in names:
        store.put(f"tars/{name}.tar", tar)
        store.put(f"v/{name}.mp4", name.encode())
    rows = [{"path": f"v/{name}.mp4"} for name in names] + [{"path": f"{s3}/v/{name}.mp4"} for name in names]
    store.put("m#1.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    found = read_items(tmp_path, recipe, f"{s3}/m#1.jsonl")
    assert [item.key for item in found] == [row["path"] for row in rows]
    assert [item.uri for item in found] == [f"{s3}/v/{name}.mp4" for name in names] * 2
    assert [content_of(item, recipe) for item in found] == [name.encode() for name in names] * 2
    assert canonical(f"{s3}/v/a.mp4?X-Amz-Signature=SECRET&x") == canonical(f"{s3}/v/a.mp4") == f"{s3}/v/a.mp4"
    sources = find_sources([f"{s3}/tars/*.tar"])
    assert sorted(source.name for source in sources) == sorted(f"{s3}/tars/{name}.tar" for name in names)
    assert [item.key for item in read_items(tmp_path / "t", recipe, f"{s3}/tars/x#1.tar")] == ["1"]
    assert [item.key for item in read_items(tmp_path / "f", recipe, f"{s3}/v")] == sorted(
        f"{name}.mp4" for name in names
    )


def test_files_of_one_folder_that_are_given_one_by_one_are_one_source(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    (source,) = find_sources([f"{tmp_path}/b.mp4", f"{tmp_path}/a.mp4"])
    assert source.name == canonical(str(tmp_path)) and [file.path for file in source.files] == ["a.mp4", "b.mp4"]
    found = read_items(tmp_path, recipe, f"{tmp_path}/b.mp4", f"{tmp_path}/a.mp4")
    assert [content_of(item, recipe) for item in found] == [b"a.mp4", b"b.mp4"]
    named = find_sources([f"one={tmp_path}/a.mp4", f"{tmp_path}/b.mp4", f"{tmp_path}/c.mp4"])
    assert [(source.name, len(source.files)) for source in named] == [("one", 1), (canonical(str(tmp_path)), 2)]
    for twice in ([f"{tmp_path}/a.mp4"] * 2, [f"{tmp_path}/a.mp4", f"{tmp_path}"]):
        with pytest.raises(ConfigError, match="given twice; name one of them with NAME=URL"):
            find_sources(twice)

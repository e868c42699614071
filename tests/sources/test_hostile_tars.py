"""Tars that are made to do harm: headers that lie, absurd names, hostile sidecar files and pickles."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, Rejected
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources import fetch as fetch_module
from pipeline.sources import sidecars
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item, is_system_file
from pipeline.sources.tar.members import members
from stvae import Card
from tests.sources.test_sources import content_of, read_items
from tests.support.clips_maker import make_image
from tests.support.oracle import assert_sound

Member = tuple[str, bytes]
END = bytes(1024)


def header(name: bytes, size: int, type_: bytes = b"0", link: bytes = b"") -> bytes:
    """A tar header with a valid checksum. Its other fields may be wrong."""
    if 0 <= size < 8**11:
        field = b"%011o\0" % size
    else:
        field = (b"\x80" if size > 0 else b"\xff") + size.to_bytes(11, "big", signed=size < 0)
    plain = name.ljust(100, b"\0")[:100] + b"0000644\0" * 3 + field + b"0" * 11 + b"\0" + b" " * 8 + type_
    plain = (plain + link.ljust(100, b"\0") + b"ustar\x0000").ljust(512, b"\0")
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:]


def member(name: bytes, content: bytes, type_: bytes = b"0") -> bytes:
    return header(name, len(content), type_) + content + bytes(-len(content) % 512)


def pax(name: bytes, content: bytes, records: dict[str, str]) -> bytes:
    """A member with pax records before it."""
    text = b""
    for keyword, value in records.items():
        record = f" {keyword}={value}\n".encode("utf-8", "surrogateescape")
        length = len(record) + 1
        while length != len(record) + len(str(length)):
            length = len(record) + len(str(length))
        text += str(length).encode() + record
    return member(b"pax", text, b"x") + member(name, content)


def read(tmp_path: Path, recipe: Recipe, data: bytes | list[Member]) -> list[Item]:
    path = tmp_path / "a.tar"
    if isinstance(data, list):
        data = b"".join(pax(b"short", content, {"path": name}) for name, content in data) + END
    path.write_bytes(data)
    for plan in (tmp_path / "plan-out").rglob("*.parquet"):
        plan.unlink()
    return read_items(tmp_path, recipe, str(path))


def reasons(items: list[Item]) -> list[tuple[str, str | None]]:
    return [(item.key, item.fault and item.fault.reason) for item in items]


GOOD = member(b"good.mp4", b"video")


def test_members_that_are_no_plain_files_are_rejects_and_are_skipped(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    target = str(tmp_path / "secret.mp4").encode()
    data = b"".join(
        [
            header(b"symlink.mp4", 0, b"2", target),
            header(b"hardlink.mp4", 0, b"1", target),
            header(b"character.mp4", 0, b"3"),
            header(b"block.mp4", 0, b"4"),
            header(b"fifo.mp4", 0, b"6"),
            member(b"unknown.mp4", b"1" * 700, b"Z"),
            header(b"folder.mp4/", 0, b"5"),
            pax(b"sparse01.mp4", b"1" * 512, {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(1 << 50)}),
            pax(b"sparse10.mp4", b"9" * 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
            pax(b"sparse.mp4", b"1" * 512, {"GNU.sparse.size": "not a number"}),
            GOOD,
            END,
        ]
    )
    found = read(tmp_path, recipe, data)
    rejected = "symlink hardlink character block fifo unknown sparse01 sparse10 sparse".split()
    assert reasons(found) == [*((key, "not_a_file") for key in rejected), ("good", None)]
    assert content_of(found[-1], recipe) == b"video"


def test_an_old_sparse_member_with_a_long_map_is_skipped(tmp_path: Path, recipe: Recipe) -> None:
    start = bytearray(header(b"sparse.mp4", 512, b"S"))
    start[482], start[483:495] = 1, b"%011o\0" % (1 << 30)
    start[148:156] = b" " * 8
    start[148:156] = b"%06o\0 " % sum(start)
    block = struct.pack("504sB7x", b"", 1)
    data = bytes(start) + block * 3 + bytes(512) + b"1" * 512 + GOOD + END
    assert reasons(read(tmp_path, recipe, data)) == [("sparse", "not_a_file"), ("good", None)]
    cut = bytes(start) + block * 3
    assert reasons(read(tmp_path, recipe, GOOD + cut)) == [("good", "damaged_tar")]


@pytest.mark.parametrize(
    "bad",
    {
        "a terabyte": header(b"bad.mp4", 1 << 40),
        "more than any file": header(b"bad.mp4", 1 << 80),
        "a terabyte of text": header(b"bad.txt", 1 << 40),
        "a negative size": header(b"bad.mp4", -512),
        "a name of a gigabyte": header(b"long", 1 << 30, b"L"),
        "a link name of a gigabyte": header(b"long", 1 << 30, b"K"),
        "records of a gigabyte": header(b"pax", 1 << 30, b"x"),
        "records for all of a gigabyte": header(b"pax", 1 << 30, b"g"),
        "names of names": header(b"long", 0, b"L") * 3000,
        "records of nothing": member(b"pax", b"", b"x"),
        "a name of nothing": member(b"long", b"name", b"L"),
        "a record without length": member(b"pax", b"x path=y\n", b"x"),
        "a record of length zero": member(b"pax", b"0 path=y\n", b"x"),
        "a record beyond its header": member(b"pax", b"99 path=y\n", b"x"),
        "a million digits": member(b"pax", b"1" * 1_000_000, b"x"),
        "a value of digits": pax(b"bad.mp4", b"", {"size": "9" * 5000}),
        "a size that is no number": pax(b"bad.mp4", b"", {"size": "1e3"}),
        "a negative size in a record": pax(b"bad.mp4", b"1", {"size": "-1024"}),
        "a size too small in a record": pax(b"bad.mp4", b"1" * 2000, {"size": "1"}),
        "a name for all": member(b"pax", b"18 path=all.mp4\nxx"[:16].replace(b"18", b"16"), b"g") + GOOD,
        "gzip": b"\x1f\x8b\x08" + bytes(2000),
        "text": b"not a tar at all" * 100,
    }.items(),
    ids=lambda case: case[0],
)
def test_headers_that_lie_end_the_tar_with_a_reject(tmp_path: Path, recipe: Recipe, bad: tuple[str, bytes]) -> None:
    found = read(tmp_path, recipe, GOOD + GOOD + bad[1] + END)
    assert reasons(found)[0] == ("good", None) and content_of(found[0], recipe) == b"video"
    assert found[-1].fault is not None and found[-1].fault.reason == "damaged_tar"
    assert len(found) <= 3


def test_duplicate_keys_all_become_items(tmp_path: Path, recipe: Recipe) -> None:
    names = ["a.mp4", "a.txt", "a.mp4", "a.mp4", "a.txt", "b.mp4", "a.mp4", "a.txt"]
    found = read(tmp_path, recipe, [(name, f"{i}".encode()) for i, name in enumerate(names)])
    assert [(item.ordinal, item.key, item.caption) for item in found] == [
        (0, "a", "1"),
        (1, "a", None),
        (2, "a", "4"),
        (3, "b", None),
        (4, "a", "7"),
    ]
    assert [content_of(item, recipe) for item in found] == [b"0", b"2", b"3", b"5", b"6"]


def test_an_item_of_too_many_members_or_bytes_is_a_reject(tmp_path: Path, recipe: Recipe) -> None:
    many = [(f"a.{i}.mp4", b"1") for i in range(500)]
    rejects = [(name, "too_many_members") for name, _ in many]
    assert reasons(read(tmp_path, recipe, [*many, ("b.mp4", b"2")])) == [*rejects, ("b", None)]
    small = dataclasses.replace(recipe, max_item_bytes=1000)
    halves = [("a.1.mp4", bytes(600)), ("a.2.mp4", bytes(600)), ("b.mp4", bytes(600))]
    assert reasons(read(tmp_path, small, halves)) == [
        ("a.1.mp4", "too_large"),
        ("a.2.mp4", "too_large"),
        ("b", None),
    ]


def test_names_that_are_not_utf8_are_rejects_that_show_them(tmp_path: Path, recipe: Recipe) -> None:
    data = member(b"caf\xe9.mp4", b"1") + member(b"b.mp4\xff", b"2") + pax(b"c", b"3", {"path": "c\udce9.mp4"})
    found = read(tmp_path, recipe, data + GOOD + END)
    assert reasons(found) == [("caf\\xe9", "bad_key"), ("b", "bad_key"), ("c\\xe9", "bad_key"), ("good", None)]


SIDECARS: list[tuple[str, str, bytes, str | None]] = [
    ("a caption of a megabyte", "txt", b"x" * 1_000_000, None),
    ("control characters", "txt", b"\x00\x07\x1b[31m red", None),
    ("a caption that is not UTF-8", "txt", b"\xff\xfe", "bad_sidecar"),
    ("NaN", "json", b'{"score": NaN}', None),
    ("Infinity", "json", b'{"score": -Infinity}', None),
    ("a number that overflows", "json", b'{"score": 1e999}', "bad_sidecar"),
    ("a field twice", "json", b'{"caption": "a", "caption": "b"}', "bad_sidecar"),
    ("a field twice, deep inside", "json", b'{"x": [{"y": 1, "y": 1}]}', "bad_sidecar"),
    ("deep lists", "json", b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "bad_sidecar"),
    ("deep objects", "json", b'{"x": ' * 100_000 + b"1" + b"}" * 100_000, "bad_sidecar"),
    ("5000 digits", "json", b'{"n": ' + b"9" * 5000 + b"}", "bad_sidecar"),
    ("half a surrogate pair as caption", "json", b'{"caption": "\\ud800"}', "bad_sidecar"),
    ("half a surrogate pair as column", "json", b'{"word": "\\udc00"}', "bad_sidecar"),
    ("half a surrogate pair elsewhere", "json", b'{"else": "\\ud800"}', None),
    ("an int beyond 64 bits", "json", b'{"n": 9223372036854775808}', "bad_sidecar"),
    ("the largest int", "json", b'{"n": 9223372036854775807}', None),
    ("an int too large for a float", "json", b'{"score": ' + b"9" * 400 + b"}", "bad_sidecar"),
    ("a list", "json", b"[]", "bad_sidecar"),
    ("nothing", "json", b"", "bad_sidecar"),
    ("more than the limit", "json", b'{"x": "' + b" " * sidecars.MAX_BYTES + b'"}', "bad_sidecar"),
    ("text of more than the limit", "txt", b" " * (sidecars.MAX_BYTES + 1), "bad_sidecar"),
]


@pytest.mark.parametrize(("name", "suffix", "content", "reason"), SIDECARS, ids=[case[0] for case in SIDECARS])
def test_sidecars_are_read_strictly(
    tmp_path: Path, recipe: Recipe, name: str, suffix: str, content: bytes, reason: str | None
) -> None:
    recipe = dataclasses.replace(recipe, columns=("score:float", "n:int", "word:str"))
    data = member(b"a.mp4", b"1") + member(b"a." + suffix.encode(), content) + END
    (tarred,) = read(tmp_path, recipe, data)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"1")
    (folder / f"a.{suffix}").write_bytes(content)
    (in_folder,) = read_items(tmp_path / "other", recipe, str(folder))
    for item in (tarred, in_folder):
        assert (item.fault and item.fault.reason) == reason
        assert item.fault is None or (item.fault.stage == "read" and len(item.fault.message) <= 300)
    if reason is None and suffix == "txt":
        assert tarred.caption == in_folder.caption == content.decode().strip()


def test_sidecar_files_of_a_folder_are_not_followed_out_of_it(tmp_path: Path, recipe: Recipe) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    for key in "abcd":
        (folder / f"{key}.mp4").write_bytes(b"1")
    (folder / "a.txt").symlink_to(secret)
    (folder / "b.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "c.txt")
    (folder / "d.txt").mkdir()
    (folder / "linked.mp4").symlink_to(secret)
    found = read_items(tmp_path, recipe, str(folder))
    assert reasons(found) == [(f"{key}.mp4", "bad_sidecar") for key in "abc"] + [("d.mp4", None)]
    assert all(item.caption is None for item in found)


def test_files_that_cannot_be_read_are_rejects(tmp_path: Path, recipe: Recipe) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    cases = {
        "pipe.mp4": "not_a_file",
        "folder.mp4": "not_a_file",
        "/dev/zero": "not_a_file",
        "loop.mp4": "not_found",
        "a\0b.mp4": "not_found",
        "x" * 5000 + ".mp4": "not_found",
        "good.tar/inside.mp4": "not_found",
        "private.mp4": "not_readable",
    }
    (tmp_path / "good.tar").write_bytes(b"")
    (tmp_path / "private.mp4").write_bytes(b"1")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in cases))
    for item, (name, reason) in zip(read_items(tmp_path, recipe, f"{tmp_path}/m.jsonl"), cases.items(), strict=True):
        assert item.key == name
        with pytest.raises(Rejected) as failure, pytest.MonkeyPatch.context() as patch:
            if reason == "not_readable":  # root can read every file
                patch.setattr(fetch_module.os, "open", _forbidden)
            fetch(item, recipe)
        assert (failure.value.reject.stage, failure.value.reject.reason) == ("fetch", reason), name


def _forbidden(*arguments: Any) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_file_of_a_folder_whose_name_is_not_utf8_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb"):
        pass
    with pytest.raises(ConfigError, match=r"not UTF-8: 'caf\\xe9\.mp4'; rename it"):
        find_sources([str(tmp_path)])


class Harm:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


ABSURD_KEYS = [
    "../../../escape",
    "/absolute",
    "C:\\windows",
    "__meta__/x",
    "__key__",
    ".hidden",
    "new\nline",
    "tab\tand\x1b[31m",
    "nul\0byte",
    "😀/👨‍👩‍👧",
    "‮עברית",
    "é",
    "e\u0301",
    "Case",
    "case",
    "'; DROP TABLE x; --",
    "=cmd|' /C calc'!A0",
    "metadata",
    "long" * 2500,
    " ",
]


def test_absurd_keys_arrive_exactly_in_rows_json_and_stock_webdataset(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    recipe = dataclasses.replace(recipe, buckets=(Bucket(1, 32, 32),), micro_batch=(1,))
    video = make_image(tmp_path / "v.png", size=(32, 32)).read_bytes()
    harm = tmp_path / "harmed"
    pickled = pickle.dumps(Harm(harm))
    records: list[Member] = []
    for key in ABSURD_KEYS:
        records += [(f"{key}.png", video), (f"{key}.txt", "caption\n\0\x1b 😀".encode())]
        records += [(f"{key}.{suffix}", pickled) for suffix in ("pth", "pkl", "pyd", "pickle", "pt")]
    data = b"".join(pax(b"short", content, {"path": name}) for name, content in records)
    data += (
        member(b"caf\xe9.mp4", video) + member(b"....mp4", video) + header(b"link.mp4", 0, b"2", b"/etc/passwd") + END
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(data)
    before = {path for path in tmp_path.parent.iterdir()}
    summary = encode(recipe, dataclasses.replace(run, sources=(f"{tmp_path}/in/a.tar",)), tiny_card, say=lambda _: None)
    assert summary.counts.rejects == {"read/bad_key": 1, "read/no_media": 1, "read/not_a_file": 1}
    rows = assert_sound(Path(run.output))
    samples = [row for row in rows if row["shard"]]
    assert [row["key"] for row in samples] == ABSURD_KEYS
    assert {row["caption"] for row in samples} == {"caption\n\0\x1b 😀"}
    # read the output as the README says, after a pickle was added to it
    shards = sorted((Path(run.output) / "shards").iterdir())
    with tarfile.open(shards[0], "a") as tar:
        info = tarfile.TarInfo(f"{samples[-1]['id']}.pkl")
        info.size = len(pickled)
        tar.addfile(info, io.BytesIO(pickled))
    dataset = wds.WebDataset([str(path) for path in shards], shardshuffle=False).decode(only=["latent.npy", "json"])
    found = {sample["__key__"]: sample["json"]["key"] for sample in dataset}
    assert found == {row["id"]: row["key"] for row in samples}
    assert not harm.exists() and {path for path in tmp_path.parent.iterdir()} == before
    for path in Path(run.output).rglob("*"):
        assert not any(key in path.name for key in ("escape", "hidden", "DROP", "😀"))


WITHOUT_DOTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WITHOUT_DOTS, st.sampled_from(["", ".", ".."]), WITHOUT_DOTS), min_size=1, max_size=4))
def test_any_key_arrives_exactly_or_is_a_clear_reject(
    tmp_path: Path, recipe: Recipe, keys: list[tuple[str, str, str]]
) -> None:
    whole = [f"{folder}/{dots}{name}" for folder, dots, name in keys]
    whole = [key for key in whole if not is_system_file(f"{key}.mp4")]
    found = read(tmp_path, recipe, [(f"{key}.mp4", b"%d" % i) for i, key in enumerate(whole)])
    for i, (key, item) in enumerate(zip(whole, found, strict=True)):
        if key.rpartition("/")[2].lstrip("."):
            assert (item.key, item.fault) == (key, None)
            assert content_of(item, recipe) == b"%d" % i and item.uri.endswith(f"#{key}.mp4")
        else:  # a name of dots and a suffix only
            assert item.fault is not None and item.fault.reason == "no_media" and item.key.startswith(key)


def test_the_members_of_a_tar_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.tar"
    path.write_bytes(header(b"x", 0) * 30_000 + END)
    with path.open("rb") as f:
        assert sum(1 for _ in members(f)) == 30_000

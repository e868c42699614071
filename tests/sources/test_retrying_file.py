"""Reading sources from servers that fail for a moment gives no reject and no shorter file."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.recipe import Recipe
from pipeline.sources import retrying_file
from pipeline.sources.manifest import Slice, rows, survey
from pipeline.sources.retrying_file import file_facts, open_retrying, read_whole
from pipeline.storage import retry
from tests.sources.test_sources import content_of, read_items, write_tar
from tests.support.http_server import Reply, serving

DATA = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    monkeypatch.setattr(retrying_file, "BLOCK_BYTES", 100_000)


class FlakyServer:
    """Answers well, but with one of the bad replies every third time."""

    def __init__(self, content: bytes, *bad: Reply, ranges: bool = True) -> None:
        self.content = content
        self.bad = list(bad)
        self.ranges = ranges
        self.count = 0

    def __call__(self, path: str) -> Reply:
        if not path.startswith("/a."):
            return Reply(status=404)
        self.count += 1
        if self.bad and self.count % 3 == 0:
            return self.bad[self.count // 3 % len(self.bad)]
        return Reply(self.content, ranges=self.ranges)


def test_the_end_of_a_file_whose_size_was_not_given_is_found_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FlakyServer(DATA)) as server:
        with open_retrying(f"{server.url}/a.tar", 0) as f:
            assert f.seek(-3, io.SEEK_END) == len(DATA) - 3 and f.read() == DATA[-3:]
        store = SimpleNamespace(info=lambda path: {"size": None})
        monkeypatch.setattr(retrying_file, "open_filesystem", lambda url: (store, "a.tar"))
        with open_retrying(f"{server.url}/a.tar", 0) as f, pytest.raises(io.UnsupportedOperation, match=r"a\.tar"):
            f.seek(0, io.SEEK_END)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_file_arrives_whole_through_a_server_that_fails_now_and_then(ranges: bool) -> None:
    server_replies = FlakyServer(DATA, Reply(status=503), Reply(DATA, cut_at=10), Reply(b""), ranges=ranges)
    with serving(server_replies) as server:
        with open_retrying(f"{server.url}/a.tar", len(DATA)) as f:
            assert f.read() == DATA
            f.seek(700_001)
            assert f.read(10) == DATA[700_001:700_011]
        assert read_whole(f"{server.url}/a.tar", len(DATA)) == DATA
        assert file_facts(f"{server.url}/a.tar").size == len(DATA)
    assert server_replies.count > 6


@pytest.mark.parametrize(
    "bad", [Reply(status=503), Reply(status=403), Reply(DATA, cut_at=10), Reply(b""), Reply(b"short")]
)
def test_a_server_that_keeps_failing_stops_the_job_by_name_without_its_query(
    bad: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    with serving(lambda path: bad) as server:
        url = f"{server.url}/a.tar?signature=SECRET"
        for read in (lambda: open_retrying(url, len(DATA)).read(), lambda: read_whole(url, len(DATA))):
            with pytest.raises(StoreError, match=r"/a\.tar could not be read") as failure:
                read()
            assert "SECRET" not in repr(failure.value) and failure.value.__suppress_context__


def test_a_tar_on_a_failing_server_gives_all_its_items_or_stops_the_job(tmp_path: Path, recipe: Recipe) -> None:
    members = [(f"{i}.mp4", bytes([i]) * 60_000) for i in range(10)]
    tar = write_tar(tmp_path / "a.tar", members).read_bytes()
    with serving(FlakyServer(tar, Reply(status=500), Reply(tar, cut_at=1000))) as server:
        found = read_items(tmp_path, recipe, f"{server.url}/a.tar")
        assert [content_of(item, recipe) for item in found] == [content for _, content in members]
    answers = iter([Reply(tar)] * 3)
    with serving(lambda path: next(answers, Reply(status=500))) as server, pytest.raises(StoreError, match=r"a\.tar"):
        read_items(tmp_path / "other", recipe, f"{server.url}/a.tar")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_manifests_arrive_whole_through_a_server_that_fails_now_and_then(suffix: str, ranges: bool) -> None:
    table = pa.table({"path": [f"{i}.mp4" for i in range(2000)], "caption": [f"number {i}" * 20 for i in range(2000)]})
    sink = io.BytesIO()
    if suffix == "parquet":
        pq.write_table(table, sink, row_group_size=300)
    elif suffix == "csv":
        pa.csv.write_csv(table, sink)
    else:
        sink.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())
    content = sink.getvalue()
    with serving(FlakyServer(content, Reply(status=502), Reply(content, cut_at=5), ranges=ranges)) as server:
        url = f"{server.url}/a.{suffix}"
        found = survey(url, 700)
        got = [row for part in found.slices for row in rows(url, part, found.header, found.schema, len(content))]
    assert got == table.to_pylist()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("jsonl", b'{"path": "a.mp4"}\n{"path": "https://x/?signature=SECRET"\n'),
        ("csv", b"path,caption\na.mp4,x\nhttps://x/?signature=SECRET\n"),
        ("parquet", b"PAR1 SECRET"),
        ("parquet", b""),
    ],
)
def test_a_damaged_manifest_is_refused_by_name_and_without_its_content(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    (tmp_path / f"m.{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"m\.{suffix}' cannot be read as {suffix}") as failure:
        survey(f"{tmp_path}/m.{suffix}", 10)
    assert "SECRET" not in repr(failure.value)


def test_a_store_that_fails_under_a_parquet_manifest_is_not_taken_for_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"] * 10}), tmp_path / "m.parquet")
    size_bytes = (tmp_path / "m.parquet").stat().st_size
    opened = builtins.open

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("m.parquet"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError, match=r"m\.parquet could not be read at"):
        patch.setattr(builtins, "open", fail)
        list(rows(f"{tmp_path}/m.parquet", Slice(start=0, stop=10), "", pa.schema([]), size_bytes))

"""Purges of outputs in a bucket and with tasks on Ray, and readers on web servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.edit_dataset import main as edit
from jobs.verify_dataset import main as verify
from pipeline.errors import Purged
from pipeline.loader import LatentDataset
from pipeline.storage.store import Store
from tests.support.captioned_set import VIDEO_BUCKET, Captions, add_unit, finish
from tests.support.http_server import Reply, serving
from tests.support.oracle import tree
from tests.support.searcher import find_traces


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for start, bucket in ((0, None), (4, VIDEO_BUCKET), (8, None)):
        more = {} if bucket is None else {"bucket": bucket}
        add_unit(folder, [Captions(f"caption of {n}.", score=float(n), **more) for n in range(start, start + 4)])
    finish(folder)
    return folder


def remove(output: Path | str) -> None:
    assert edit([str(output), "remove", "--where", "meta_score in [1, 6]", "--reason", "ticket 12"]) == 0


def copy(source: str, target: str) -> None:
    here, there = Store(source), Store(target)
    for path in here.list_files(""):
        there.put_new(path, here.get(path))


def captions(url: Path | str, **options: Any) -> list[Any]:
    return [batch["caption"] for batch in LatentDataset(url, **options).batches(2)]


def test_a_bucket_is_purged_like_a_folder_and_its_open_readers_are_told(s3: str, output: Path, tmp_path: Path) -> None:
    url = f"{s3}/out"
    copy(str(output), url)
    opened = LatentDataset(url)
    for place in (url, output):
        remove(place)
    before = captions(url)
    for place in (url, output):
        assert edit([str(place), "purge", "--local"]) == 0
    assert captions(url) == before
    with pytest.raises(Purged, match="was deleted by purge 0"):
        list(opened.batches(2))
    with pytest.raises(Purged, match="was deleted by purge 0"):
        opened.read(opened.samples.rows)
    assert verify([url]) == 0
    copy(url, str(tmp_path / "copy"))
    assert find_traces(tmp_path / "copy", [], ["caption of 1.", "caption of 6.", "6.png"]) == []
    assert tree(tmp_path / "copy") == tree(output)


def test_tasks_on_ray_purge_to_the_same_bytes(output: Path, tmp_path: Path) -> None:
    remove(output)
    copy(str(output), str(tmp_path / "other"))
    assert edit([str(output), "purge", "--local"]) == 0
    assert edit([str(tmp_path / "other"), "purge", "--ray-address", "local"]) == 0
    assert tree(output) == tree(tmp_path / "other")


def test_web_servers_show_a_purged_output(output: Path) -> None:
    def answer(path: str) -> Reply:
        found = output / path.lstrip("/")
        return Reply(found.read_bytes()) if found.is_file() else Reply(status=404)

    with serving(answer) as server:
        opened = LatentDataset(server.url)
        remove(output)
        before = captions(server.url)
        assert edit([str(output), "purge", "--local"]) == 0
        assert captions(server.url) == before
        with pytest.raises(Purged, match=r"index/0000.json was removed by purge 0"):
            LatentDataset(server.url, version="index=0")
        with pytest.raises(Purged, match="was deleted by purge 0"):
            list(opened.batches(2))
    newest = sorted((output / "index").glob("*.json"))
    assert [("samples" in json.loads(path.read_text())) for path in newest] == [False, False, True]

"""Jobs on outputs with edits: what is removed is not encoded, also in a unit in flight, and does not come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from jobs.edit_dataset import main as edit
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.encode.shard_attempt import ShardAttempt
from pipeline.environment import user_name
from pipeline.errors import StoreError
from pipeline.loader import LatentDataset
from pipeline.output.index import read_index
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.report.page import write_page
from pipeline.run import encode
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from stvae import Card
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY

Encode = Callable[..., Summary]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for n in range(4):
        make_clip(folder / f"{n}.mp4", 40, size=(32, 56), seed=n)
        (folder / f"{n}.txt").write_text(f"caption {n}")
    return folder


@pytest.fixture(scope="module")
def run(videos: Path, tiny_card: Card) -> Encode:
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, 32, 56),), micro_batch=(1,), unit_clips=4, windows="all")

    def encode_into(output: Path, **changes: Any) -> Summary:
        values = {"output": str(output), "vae": str(TINY), "sources": (f"v={videos}",), "local": True, "cpus": 1}
        return encode(recipe, Run(**values | changes), tiny_card, say=lambda line: None)

    return encode_into


@pytest.fixture(scope="module")
def finished(run: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "out"
    run(output)
    return output


@pytest.fixture
def takedown(finished: Path, tmp_path: Path) -> list[list[str]]:
    """Arguments that remove one item, and one window of another one."""
    table = LatentDataset(finished).columns
    window = next(
        row["id"]
        for row in table.select(["id", "key", "window"]).to_pylist()
        if row["key"] == "2.mp4" and row["window"]
    )
    (tmp_path / "items").write_text(json.dumps({"source": "v", "key": "1.mp4"}))
    (tmp_path / "ids").write_text(window)
    return [["--items", str(tmp_path / "items")], ["--ids", str(tmp_path / "ids")]]


def plan_only(run: Encode, output: Path) -> None:
    with (
        mock.patch("pipeline.run.encode_units", return_value=iter([])),
        pytest.raises(StoreError, match="not committed"),
    ):
        run(output)


def remove(output: Path, takedown: list[list[str]]) -> None:
    for arguments in takedown:
        assert edit([str(output), "remove", *arguments, "--reason", "ticket 12"]) == 0


def committed(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for folder in ("shards", "metadata", "index")
        for path in (output / folder).rglob("*")
        if path.is_file()
    }


def rows(output: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((output / "metadata").iterdir()):
        yield from read_parquet(path.read_bytes()).to_pylist()


def test_an_edit_holds_for_units_that_are_not_committed_or_in_flight(
    run: Encode, takedown: list[list[str]], tmp_path: Path
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    plan_only(run, undisturbed)
    remove(undisturbed, takedown)
    summary = run(undisturbed)
    assert (summary.exit_code, summary.counts.samples, summary.counts.rejects) == (0, 5, {"read/removed": 2})
    removed = [row for row in rows(undisturbed) if row["reject_reason"] == "removed"]
    assert {(row["key"], row["window"], row["caption"]) for row in removed} == {("1.mp4", 0, None), ("2.mp4", 1, None)}
    assert not any(b"caption 1" in content for path, content in committed(undisturbed).items() if path.endswith(".tar"))

    fill = ShardAttempt.fill
    waiting = list(takedown)

    def fill_while_others_remove(attempt: ShardAttempt, is_stopped: Callable[[], bool]) -> bool:
        filled = fill(attempt, is_stopped)
        while waiting:
            remove(disturbed, [waiting.pop(0)])
        return filled

    plan_only(run, disturbed)
    with mock.patch.object(ShardAttempt, "fill", fill_while_others_remove):
        run(disturbed)
    assert committed(disturbed) == committed(undisturbed)
    assert run(disturbed, retry_rejects="all").counts.samples == 5, "what is removed does not come back"
    for generation in range(len(takedown)):
        assert edit([str(disturbed), "undo", str(generation)]) == 0
    assert run(disturbed, retry_rejects="removed").counts.samples == 8


@pytest.mark.parametrize("moment", ["when its tar is uploaded", "when nothing can stop its commit"])
def test_an_edit_that_meets_a_commit_holds_either_way(
    run: Encode, takedown: list[list[str]], tmp_path: Path, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    plan_only(run, undisturbed)
    remove(undisturbed, takedown)
    run(undisturbed)
    put_new = Store.put_new
    folder = "shards/" if moment == "when its tar is uploaded" else "metadata/"

    def put_when_others_remove(store: Store, path: str, content: bytes | Path) -> bool:
        if path.startswith(folder) and not (output / "edits").exists():
            remove(output, takedown)
        return put_new(store, path, content)

    plan_only(run, output)
    with mock.patch.object(Store, "put_new", put_when_others_remove):
        summary = run(output)
    if folder == "shards/":
        assert committed(output) == committed(undisturbed)
    else:  # as if the edit had come after the commit
        assert summary.counts.rejects == {"read/removed": 3} and "3 of them removed" in verified(output, capsys)
        index = read_index(Store(str(output)), 0)
        assert (index.num_samples, index.num_rejects) == (8, 0)
        write_page(Store(str(output)))
        assert "caption 1" not in (output / "report.html").read_text()
    assert summary.counts.samples == 5
    ids = [LatentDataset(folder).columns["id"].to_pylist() for folder in (undisturbed, output)]
    assert ids[0] == ids[1] and len(ids[0]) == 5


def verified(output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert verify([str(output)]) == 0
    return capsys.readouterr().out


def test_readers_of_a_finished_output_leave_out_what_is_removed(
    run: Encode, finished: Path, takedown: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    run(output)
    before = committed(output)
    remove(output, takedown)
    summary = run(output)
    assert edit([str(output), "log"]) == 0
    assert re.search(rf"job    \w+  20\S+Z  {re.escape(user_name())}  \d units?, 8 samples", capsys.readouterr().out)
    assert (summary.exit_code, summary.counts.samples, summary.counts.rejects) == (0, 5, {"read/removed": 3})
    assert summary.counts.captions == 5 and committed(output) == before
    write_page(Store(str(output)))
    page = (output / "report.html").read_text()
    assert "read/removed" in page and "caption 1" not in page
    assert "Removed, but still in the shards until a purge: 3 clips" in page
    assert "stored means of 8 clips, also of 3 that edits have removed" in page and "with 3 removed clips" in page
    assert "8 samples, 3 of them removed" in verified(output, capsys)
    assert edit([str(output), "tag", "v1"]) == 0
    (output / "edits" / "0001.parquet").write_bytes(b"PAR1 damaged")
    assert verify([str(output)]) == 1
    assert "edits/0001.parquet is damaged" in capsys.readouterr().out

"""Purges beside jobs that encode: whatever comes first, nothing of what was removed stays, and nothing else is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.edit_dataset import main as edit
from jobs.import_dataset import main as import_dataset
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.encode import cleanup
from pipeline.errors import StoreError
from pipeline.loader import LatentDataset
from pipeline.output import index_builder
from pipeline.output.shard_writer import ShardWriter
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.imports.test_import import write_cache
from tests.support.golden import TINY
from tests.support.painted import SIZE, VARIABLE, command, painted, write_video, write_videos
from tests.support.paths import ROOT
from tests.support.searcher import find_traces

NUM_VIDEOS = 14
Encode = Callable[..., Summary]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos") / "v", NUM_VIDEOS)


@pytest.fixture
def run(videos: Path, tmp_path: Path, tiny_card: Card) -> Encode:
    plain = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(2,), unit_clips=4)

    def encode_into(
        output: Path, source: Path = videos, settings: dict[str, Any] | None = None, **changes: Any
    ) -> Summary:
        recipe = dataclasses.replace(plain, **settings or {})
        values = {"output": str(output), "vae": str(TINY), "sources": (f"v={source}",), "local": True, "cpus": 1}
        with painted():
            return encode(recipe, Run(**values | changes), tiny_card, say=lambda line: None)

    return encode_into


def remove(output: Path, tmp_path: Path, *numbers: int) -> None:
    items = tmp_path / "items"
    items.write_text("".join(json.dumps({"source": "v", "key": f"{number:02d}.mp4"}) + "\n" for number in numbers))
    assert edit([str(output), "remove", "--items", str(items), "--reason", "ticket 12"]) == 0


def purge(output: Path) -> int:
    return edit([str(output), "purge", "--local"])


def moments_of(*numbers: int) -> list[bytes]:
    """Bytes that the latents of painted videos have; 0 is everywhere."""
    return [np.full(500, number, np.float16).tobytes() for number in numbers if number]


def assert_gone(output: Path, *numbers: int) -> None:
    """Check that the videos are in no file but plan and edits, which keep them out, and that all others are there."""
    traces = find_traces(output, moments_of(*numbers), [f"number {number}" for number in numbers if number > 9])
    traces += find_traces(output, [], [f"/{number:02d}.mp4" for number in numbers])
    assert [trace for trace in traces if not trace.startswith(("plan/", "edits/"))] == []
    newest = {path.name.split(".")[0]: path for path in sorted((output / "metadata").iterdir())}
    rows = [row for path in newest.values() for row in pq.read_table(path).to_pylist()]
    assert sorted(row["ordinal"] for row in rows) == list(range(len(rows))), "every window has one outcome"
    keys = {f"{number:02d}.mp4" for number in range(len(rows))} - {f"{number:02d}.mp4" for number in numbers}
    assert {row["key"] for row in rows if row["shard"]} == keys
    assert sorted(LatentDataset(output).columns["key"].to_pylist()) == sorted(keys)
    assert verify([str(output)]) == 0


def once(action: Callable[..., object], work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` with an action before its first call, which gets the same arguments."""
    waiting = [action]

    def act_and_work(*arguments: Any, **options: Any) -> Any:
        while waiting:
            waiting.pop()(*arguments)
        return work(*arguments, **options)

    return act_and_work


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"store": "mean", "dtype": "int8", "conditioning": "first-last"},
        {"dtype": "float32", "conditioning": "first"},
    ],
    ids=["float16", "int8", "float32"],
)
def test_a_purge_leaves_the_tars_that_encoding_with_the_edits_would_have_made(
    run: Encode, tmp_path: Path, settings: dict[str, Any]
) -> None:
    purged, planned = tmp_path / "purged", tmp_path / "planned"
    run(purged, settings=settings)
    remove(purged, tmp_path, 2, 3, 8)
    assert purge(purged) == 0
    with mock.patch("pipeline.run.encode_units", return_value=iter([])), pytest.raises(StoreError):
        run(planned, settings=settings)
    remove(planned, tmp_path, 2, 3, 8)
    run(planned, settings=settings)
    tars = [{path.name: path.read_bytes() for path in (output / "shards").iterdir()} for output in (purged, planned)]
    assert tars[0] == tars[1]
    facts = []
    for output in (purged, planned):
        newest = {path.name.split(".")[0]: pq.read_table(path) for path in sorted((output / "metadata").iterdir())}
        facts.append({unit: dict(table.schema.metadata) for unit, table in newest.items()})
        facts[-1] = {
            unit: {name: value for name, value in found.items() if name not in (b"purge", b"replaces")}
            for unit, found in facts[-1].items()
        }
    assert facts[0] == facts[1], "counts and sums too"
    assert verify([str(purged)]) == 0
    if not settings:
        assert_gone(purged, 2, 3, 8)


def test_items_go_from_all_groups_of_buckets(run: Encode, tmp_path: Path) -> None:
    output, buckets = tmp_path / "out", (Bucket(17, *SIZE, "small"), Bucket(17, 16, 24, "tiny"))
    run(output, settings={"dtype": "bfloat16", "buckets": buckets, "micro_batch": (2, 2)})
    remove(output, tmp_path, 12, 13)
    ids = LatentDataset(output).columns["id"].to_pylist()
    assert purge(output) == 0
    assert find_traces(output, [], ["number 12", "number 13"]) == []
    after = LatentDataset(output)
    assert after.columns["id"].to_pylist() == ids and len(after) == 2 * (NUM_VIDEOS - 2)
    assert sum(len(batch["id"]) for batch in after.batches(1)) == len(after), "every checksum is right"
    assert verify([str(output)]) == 0


def test_rejects_that_were_tried_again_go_from_both_units(run: Encode, tmp_path: Path) -> None:
    output, source = tmp_path / "out", write_videos(tmp_path / "v", 6)
    (source / "03.mp4").write_text("no video")
    run(output, source, max_rejects=1.0)
    run(output, source, max_rejects=1.0, retry_rejects="all")
    assert len(list((output / "plan").iterdir())) == 2
    remove(output, tmp_path, 3)
    assert purge(output) == 0
    traces = find_traces(output, [], ["03.mp4", "number 3"])
    assert [trace for trace in traces if not trace.startswith(("plan/", "edits/"))] == []
    assert verify([str(output)]) == 0
    run(output, source, max_rejects=1.0, retry_rejects="all")
    assert len(list((output / "plan").iterdir())) == 2, "what was purged is not tried again"


def takedown_of_unit(output: Path, tmp_path: Path, removed: list[int]) -> Callable[..., str]:
    """``ShardWriter.commit``, before which an item of the unit is removed and purged: after the last look at the edits."""

    def takedown(writer: ShardWriter, *_: Any) -> None:
        removed.append(writer._unit.start + 1)
        remove(output, tmp_path, *removed)
        assert purge(output) == 0

    return once(takedown, ShardWriter.commit)


def test_a_unit_in_flight_does_not_bring_back_what_a_purge_deletes(run: Encode, tmp_path: Path) -> None:
    output, removed = tmp_path / "out", list[int]()
    with mock.patch.object(ShardWriter, "commit", takedown_of_unit(output, tmp_path, removed)):
        run(output)
    assert_gone(output, *removed)


def test_an_encoder_that_is_killed_after_such_a_commit_leaves_it_to_the_next_job(run: Encode, tmp_path: Path) -> None:
    output, removed = tmp_path / "out", list[int]()
    with (
        mock.patch.object(ShardWriter, "commit", takedown_of_unit(output, tmp_path, removed)),
        mock.patch("pipeline.encode.encoder.settle_committed_unit", side_effect=StoreError("killed")),
        pytest.raises(StoreError, match="killed"),
    ):
        run(output)
    assert find_traces(output, moments_of(*removed), [])
    run(output)
    assert_gone(output, *removed)


@pytest.mark.parametrize("has_index", [False, True])
def test_an_index_of_old_units_cannot_come_after_a_purge(run: Encode, tmp_path: Path, has_index: bool) -> None:
    output, source = tmp_path / "out", write_videos(tmp_path / "v", 6)
    if has_index:
        run(output, source)
        for number in range(6, NUM_VIDEOS):
            write_video(source / f"{number:02d}.mp4", number, num_frames=17)
    record = index_builder.put_parts

    def takedown(*_: Any) -> None:
        remove(output, tmp_path, 1, 4)
        assert purge(output) == 0

    with mock.patch.object(index_builder, "put_parts", once(takedown, record)):
        run(output, source)  # the job has read all unit metadata before the purge begins
    assert purge(output) == 0
    assert_gone(output, 1, 4)
    run(output, source, retry_rejects="all")
    assert_gone(output, 1, 4)


def test_a_tar_of_a_unit_that_is_not_committed_keeps_a_purge_from_its_end(
    run: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, removed = tmp_path / "out", (1, 5, 9, 13)  # one of each unit
    with (
        mock.patch.object(Store, "put_new", _all_but_metadata(Store.put_new)),
        pytest.raises(StoreError, match="killed"),
    ):
        run(output)
    assert find_traces(output / "shards", moments_of(*removed), []), "tars of attempts that did not end"
    remove(output, tmp_path, *removed)
    assert purge(output) == 1
    assert "holds removed samples of a unit that is not committed" in capsys.readouterr().out
    assert verify([str(output)]) == 1
    run(output)
    assert purge(output) == 0
    assert_gone(output, *removed)


def _all_but_metadata(put_new: Callable[..., bool]) -> Callable[..., bool]:
    def put(store: Store, path: str, content: bytes | Path) -> bool:
        if path.startswith("metadata/"):
            raise StoreError("killed")
        return put_new(store, path, content)

    return put


def test_orphans_are_left_alone_while_a_purge_is_not_finished(run: Encode, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(output)
    before = LatentDataset(output)
    remove(output, tmp_path, 5)
    with mock.patch("pipeline.edit.purge.purging.replaced_units", side_effect=StoreError("killed")):
        assert purge(output) == 1
    assert len(list((output / "shards").iterdir())) == 5, "four tars, and one that is to replace another"
    run(output)
    assert len(list((output / "shards").iterdir())) == 5
    assert sum(len(batch["id"]) for batch in before.batches(1)) == NUM_VIDEOS
    with mock.patch.object(cleanup, "remove_orphans") as removal:
        assert purge(output) == 0
    assert not removal.called
    assert_gone(output, 5)


def test_a_job_and_purges_beside_it_end_sound(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = command(videos, output, "--local", "--unit-clips", "1", "--max-rejects", "1", "--cpus", "1")
    words[words.index(str(videos))] = f"v={videos}"
    deeds = json.dumps(dict.fromkeys(range(NUM_VIDEOS), "slow"))
    removed: list[int] = []
    with subprocess.Popen(words, cwd=ROOT, env=os.environ | {VARIABLE: deeds}, stdout=subprocess.DEVNULL) as job:
        while job.poll() is None and len(removed) < 6:
            committed = len(list(output.glob("metadata/*.0.parquet")))
            if committed > len(removed):
                removed.append(
                    min(set(range(NUM_VIDEOS)) - {*removed}) if len(removed) % 2 else NUM_VIDEOS - 1 - len(removed)
                )
                remove(output, tmp_path, removed[-1])
                assert purge(output) in (0, 1), "1: a tar of a unit that is not committed holds what was removed"
            time.sleep(0.05)
        while job.poll() is None:
            purge(output)
    assert job.returncode == 0 and len(removed) >= 2, "a busy machine may end the job before all six"
    assert purge(output) == 0
    assert_gone(output, *removed)


def test_an_import_in_flight_does_not_bring_back_what_a_purge_deletes(tmp_path: Path) -> None:
    output, removed = tmp_path / "out", list[int]()
    write_cache(tmp_path / "v", range(10, 18))
    words = [str(tmp_path / "v"), "--from", "automodel", "--vae", str(TINY), "--output", str(output), "--local"]

    def takedown(writer: ShardWriter, *_: Any) -> None:
        removed.append(writer._unit.start + 11)
        items = tmp_path / "items"
        items.write_text(json.dumps({"key": f"24x16/{removed[0]}"}) + "\n")
        assert edit([str(output), "remove", "--items", str(items), "--reason", "ticket 12"]) == 0
        assert purge(output) == 0

    with mock.patch.object(ShardWriter, "commit", once(takedown, ShardWriter.commit)):
        assert import_dataset([*words, "--unit-clips", "4"]) == 0
    assert len(LatentDataset(output)) == 7 and verify([str(output)]) == 0
    assert find_traces(output, [], [f"number {removed[0]}"]) == []

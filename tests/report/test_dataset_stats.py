"""The statistics of an output are those of its rows, with an index or without."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.recipe import Recipe, Run
from pipeline.report.dataset_stats import collect_stats
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.report.pages import page_of, text_of
from tests.support.golden import TINY
from tests.support.painted import SIZE, painted, write_video


def counts(output: Path) -> dict[str, Any]:
    """Return the counts of an output, without the examples, whose choice depends on the order of rows."""
    stats = collect_stats(Store(str(output)))
    groups = {f"{name}: {group.count}" for kinds in (stats.skips, stats.rejects) for name, group in kinds.items()}
    names = ("buckets", "sources", "codecs", "encode_paths", "num_units", "num_committed")
    values = {name: getattr(stats, name) for name in names} | {"groups": groups}
    lengths = [stats.clip_durations.tolist(), stats.item_durations.tolist()]
    # the order of addition changes the last bits
    sums = [f"{value:.9g}" for value in stats.totals.latent_sum + stats.totals.latent_sum_of_squares]
    counted = (stats.totals.num_samples, stats.totals.latent_count, stats.totals.size_bytes)
    return values | {"lengths": lengths, "sums": sums, "counted": counted}


def test_counts_are_those_of_the_rows(output: Path) -> None:
    stats, data = collect_stats(Store(str(output))), LatentDataset(str(output))
    columns = data.columns
    assert {name: bucket.clips for name, bucket in stats.buckets.items()} == {
        "32x56x17": 10,
        "32x32x17": 1,
        "32x56x1": 1,
    }
    for name, bucket in stats.buckets.items():
        rows = [row for row in columns.to_pylist() if row["bucket"] == name]
        assert bucket.frames == sum(row["num_frames"] for row in rows)
        assert bucket.size_bytes == sum(row["nbytes"] for row in rows)
        seconds = sum(row["end_s"] - row["start_s"] for row in rows if row["fps"] is not None)
        assert bucket.seconds == pytest.approx(seconds)
        assert bucket.latent_shape == data.read(np.array([columns["bucket"].to_pylist().index(name)]))[0].shape
    assert stats.totals.size_bytes == sum(path.stat().st_size for path in (output / "shards").iterdir())
    summary = json.loads((output / "summary.json").read_text())
    assert {name: group.count for name, group in stats.skips.items()} == summary["skips"]
    assert {name: group.count for name, group in stats.rejects.items()} == summary["rejects"]
    assert stats.sources["films"].num_items == 8
    assert sum(source.clips for source in stats.sources.values()) == stats.clip_durations.sum() + 1 == 12
    assert stats.finished


def test_an_unfinished_output_is_counted_from_its_unit_metadata(output: Path) -> None:
    whole = counts(output)
    shutil.rmtree(output / "index")
    without_index = counts(output)
    for name, bucket in without_index["buckets"].items():  # the sum depends on the order of rows
        assert bucket.seconds == pytest.approx(whole["buckets"][name].seconds)
        bucket.seconds = whole["buckets"][name].seconds
    assert without_index == whole
    max((output / "metadata").iterdir(), key=lambda path: path.stat().st_size).unlink()
    part = counts(output)
    assert part["num_committed"] == whole["num_committed"] - 1
    clips = sum(bucket.clips for bucket in part["buckets"].values())
    assert clips == part["counted"][0] < whole["counted"][0]
    text = text_of(page_of(output))
    assert "Not finished" in text and f"{clips} in" in text


def test_rejects_that_were_tried_again_count_once(tmp_path: Path, tiny_card: Card) -> None:
    rows = [{"path": f"videos/{number}.mp4", "caption": f"number {number}"} for number in range(6)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (0, 2, 3):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=4)
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(tmp_path / "list.jsonl"),), local=True, cpus=1)
    with painted():
        encode(recipe, dataclasses.replace(run, max_rejects=1.0), tiny_card, say=lambda line: None)
        write_video(tmp_path / "videos" / "4.mp4", 4)
        encode(recipe, dataclasses.replace(run, max_rejects=1.0, retry_rejects="all"), tiny_card, say=lambda line: None)
    indexed = counts(tmp_path / "out")
    assert indexed["groups"] == {"fetch/not_found: 2"} and indexed["counted"][0] == 4
    (tmp_path / "out" / "index" / "0001.json").unlink()  # as while the second generation is being made
    assert counts(tmp_path / "out") == indexed
    shutil.rmtree(tmp_path / "out" / "index")
    assert counts(tmp_path / "out") == indexed

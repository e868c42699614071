"""Bucket groups and crops in real jobs: one decoding serves all groups, and latents are those of jobs of one group."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.output.plan import read_plan
from pipeline.output.verify import verify
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.report.round_trip import compare_samples
from pipeline.run import encode
from pipeline.storage.store import Store
from pipeline.video.placement import crop_position, fit_to_bucket
from stvae import Card
from tests.report.pages import page_of, text_of
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.oracle import assert_sound, tree
from tests.support.painted import SIZE, VARIABLE, painted, write_video

SMALL = (Bucket(17, 32, 32, "small"), Bucket(17, 32, 56, "small"))
LARGE = (Bucket(34, 48, 80, "large"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos longer on one side than their buckets, one of them too small for the large group, and a broken one."""
    folder = tmp_path_factory.mktemp("groups")
    for number, size in enumerate([(72, 144), (90, 112)]):
        make_clip(folder / "videos" / f"{number}.mp4", 40, size=size, seed=number)
    make_clip(folder / "videos" / "small.mp4", 20, size=(40, 56))
    (folder / "videos" / "bad.mp4").write_text("not a video")
    return folder


def run_in(folder: Path, name: str) -> Run:
    sources = (str(folder / "videos"),)
    return Run(output=str(folder / name), vae=str(TINY), sources=sources, local=True, cpus=2, max_rejects=1.0)


def job(folder: Path, name: str, card: Card, buckets: tuple[Bucket, ...]) -> tuple[Path, Summary]:
    recipe = Recipe(
        vae=card.sha256, buckets=buckets, micro_batch=(2,), windows="all", crop="random", crop_seed=3, unit_clips=3
    )
    return folder / name, encode(recipe, run_in(folder, name), card, say=lambda line: None)


@pytest.fixture(scope="module")
def grouped(folder: Path, tiny_card: Card) -> tuple[Path, Summary]:
    return job(folder, "grouped", tiny_card, SMALL + LARGE)


def outcomes(output: Path, group: str | None) -> dict[tuple[str, int], Any]:
    """By key and window: the tensor and the columns of a clip, or the reason of a skip."""
    found = {}
    for row in assert_sound(output):
        if row["group"] == group and not row["reject_reason"]:
            tensor = None
            if row["shard"]:
                with (output / row["shard"]).open("rb") as shard:
                    shard.seek(row["tensor_offset"])
                    tensor = shard.read(row["tensor_nbytes"])
            columns = ("bucket", "start_s", "end_s", "crop_top", "crop_left", "crop_height", "crop_width")
            found[row["key"], row["window"]] = tensor, row["skip_reason"], [row[name] for name in columns]
    return found


def test_each_group_has_the_windows_and_the_bytes_of_a_job_of_its_own(
    folder: Path, grouped: tuple[Path, Summary], tiny_card: Card
) -> None:
    ids = {row["id"] for row in assert_sound(grouped[0])}
    for name, buckets in (("small", SMALL), ("large", LARGE)):
        plain = tuple(dataclasses.replace(bucket, group="") for bucket in buckets)
        output, _ = job(folder, f"only {name}", tiny_card, plain)
        expected, found = outcomes(output, None), outcomes(grouped[0], name)
        assert found == expected and len(found) >= 5
        assert ids.isdisjoint(row["id"] for row in assert_sound(output)), "ids without groups are others"


def test_rows_have_a_group_and_an_id_that_depends_on_it(grouped: tuple[Path, Summary]) -> None:
    output, summary = grouped
    rows = assert_sound(output)
    for row in rows:
        parts = [row["source"], row["ordinal"], row["key"], row["window"], 0, row["group"] or "small"]
        assert row["id"] == hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
    (reject,) = [row for row in rows if row["reject_reason"]]
    assert (reject["key"], reject["window"], reject["group"]) == ("bad.mp4", 0, None), "it counts once, in no group"
    skips = [(row["group"], row["skip_reason"]) for row in rows if row["key"] == "small.mp4" and row["skip_reason"]]
    assert ("large", "too_small") in skips
    assert summary.groups == {"small": {"samples": 5, "skips": 3}, "large": {"samples": 2, "skips": 3}}
    assert {"small=32x56x17", "large=48x80x34"} < summary.buckets.keys()
    assert "group    large: 2 samples, 3 skips, 0 rejects" in str(summary)
    assert verify(Store(str(output)), say=lambda line: None).problems == []


def test_a_crop_belongs_to_the_item_and_is_the_same_in_all_groups(
    folder: Path, grouped: tuple[Path, Summary], tiny_card: Card
) -> None:
    again, _ = job(folder, "again", tiny_card, SMALL + LARGE)
    assert tree(again) == tree(grouped[0])
    positions = set()
    for row in assert_sound(again):
        if row["shard"]:
            position = crop_position(LatentDataset(str(again)).recipe, row["source"], row["ordinal"], row["key"])
            place = fit_to_bucket(row["src_width"], row["src_height"], Bucket.parse(row["bucket"]), position)
            scale = place.scaled_height / row["src_height"], place.scaled_width / row["src_width"]
            expected = round(place.crop_top / scale[0]), round(place.crop_left / scale[1])
            assert (row["crop_top"], row["crop_left"]) == expected
            positions.add((row["key"], position))
    assert len(positions) == len({position for _, position in positions}) == 3, "one for each item"
    with_vae = dataclasses.replace(run_in(folder, "again"), sources=())
    assert max(c.max_abs for c in compare_samples(with_vae, 2, seed=1)) < 0.02, "the crop is found again"


def test_report_and_filters_know_the_groups(grouped: tuple[Path, Summary]) -> None:
    text = text_of(page_of(grouped[0]))
    assert "group of buckets clips share skipped rejected latents small 5" in text and "large=48x80x34" in text
    assert "Items 4 from 1 source" in text
    large = LatentDataset(str(grouped[0]), where="group = 'large'")
    assert len(large) == 2 and set(large.columns["bucket"].to_pylist()) == {"48x80x34"}
    values = next(iter(large.batches(1)))["latents"].numpy()
    assert np.isfinite(values).all()


def test_an_output_of_a_program_without_groups_is_read_and_verified(tmp_path: Path, tiny_card: Card) -> None:
    write_video(tmp_path / "videos" / "1.mp4", 1)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), windows="all")
    with painted():
        encode(recipe, run_in(tmp_path, "out"), tiny_card, say=lambda line: None)
    for path in [*(tmp_path / "out" / "metadata").iterdir(), *(tmp_path / "out" / "index").glob("*/*.parquet")]:
        table = pq.read_table(path)
        assert table["group"].null_count == len(table)
        pq.write_table(table.drop_columns(["group"]), path)
    store = Store(str(tmp_path / "out"))
    assert verify(store, say=lambda line: None).problems == []
    assert "group of buckets" not in text_of(page_of(tmp_path / "out"))
    data = LatentDataset(store.url)
    assert data.columns["group"].to_pylist() == [None, None] and len(data.batches(1)) == 2


def painted_job(folder: Path, card: Card, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a job over a manifest of painted videos, in two groups."""
    buckets = (Bucket(17, *SIZE, "a"), Bucket(17, SIZE[0], SIZE[0], "b"), Bucket(34, *SIZE, "b"))
    recipe = Recipe(vae=card.sha256, buckets=buckets, micro_batch=(1,), windows="all")
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=(str(folder / "m.jsonl"),), local=True, cpus=1)
    with painted():
        encode(recipe, dataclasses.replace(run, max_rejects=1.0, **changes), card, say=lambda line: None)
    return assert_sound(folder / "out")


def test_rejects_of_items_and_of_windows_are_tried_again_by_group(
    tmp_path: Path, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"path": f"{number}.mp4"}) + "\n" for number in range(3)))
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", number)
    monkeypatch.setenv(VARIABLE, '{"1": "nan"}')
    first = painted_job(tmp_path, tiny_card)
    rejects = [(row["key"], row["window"], row["group"]) for row in first if row["reject_reason"]]
    assert sorted(rejects, key=str) == [("1.mp4", 0, "a"), ("1.mp4", 0, "b"), ("1.mp4", 1, "a"), ("2.mp4", 0, None)]
    monkeypatch.setenv(VARIABLE, "{}")
    write_video(tmp_path / "2.mp4", 2)
    again = painted_job(tmp_path, tiny_card, retry_rejects="all")
    assert not [row for row in again if row["reject_reason"]]
    by_item = [sorted((row["window"], row["group"]) for row in again if row["key"] == f"{n}.mp4") for n in range(3)]
    assert by_item[0] == by_item[1] == by_item[2] == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a")]
    (unit,) = [unit for unit in read_plan(Store(str(tmp_path / "out"))).units if unit.retries]
    assert [retry.wanted for retry in unit.retries] == [((0, "a"), (0, "b"), (1, "a")), ()]

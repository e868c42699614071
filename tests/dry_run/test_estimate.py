"""An estimate is what the job then does, and making it leaves no trace."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import estimate
from pipeline.dry_run.table import format_estimate
from pipeline.errors import ConfigError, SourceChanged
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.sources.test_sources import write_tar
from tests.support.oracle import assert_sound
from tests.support.painted import SIZE, painted, write_video

BUCKETS = (Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(34, 32, 56), Bucket(1, 32, 56))


def silent(line: str) -> None:
    pass


@pytest.fixture
def job(dataset: Path, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    sources = (str(dataset / "f"), str(dataset / "t" / "*.tar"), str(dataset / "m.jsonl"))
    many = dataclasses.replace(recipe, buckets=BUCKETS, micro_batch=(2, 1, 3, 1), fps=24.0, windows="all", unit_clips=4)
    return many, dataclasses.replace(run, sources=sources)


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "remainder": "shorten",
            "windows": "stride",
            "stride_frames": 9,
            "max_upscale": 3.0,
            "buckets": tuple(dataclasses.replace(b, group="low" if b.width == 32 else "wide") for b in BUCKETS),
            "crop": "random",
        },
        {"store": "mean", "dtype": "bfloat16", "conditioning": "first-last", "fps": None, "windows": "first"},
    ],
    ids=["plain", "shortened, in groups", "other members"],
)
def test_an_estimate_from_all_items_is_what_the_job_does(
    job: tuple[Recipe, Run], tiny_card: Card, changes: dict[str, Any]
) -> None:
    recipe, run = dataclasses.replace(job[0], **changes), job[1]
    result = estimate(recipe, run, tiny_card, 200, silent)
    assert result.sample.is_complete and not Path(run.output).exists()
    summary = encode(recipe, run, tiny_card, silent)
    assert_sound(Path(run.output))
    items = result.sample.observations
    buckets = sum((Counter({str(size): n}) for item in items for (size, _), n in item.clips.items()), Counter[str]())
    assert buckets == summary.buckets and len(buckets) >= 3
    assert sum((item.counts.skips for item in items), Counter()) == summary.counts.skips != {}
    assert sum((item.counts.rejects for item in items), Counter()) == summary.counts.rejects
    assert {"probe/empty", "read/no_media", "read/damaged_tar", "fetch/not_found"} < summary.counts.rejects.keys()
    sizes = sorted(path.stat().st_size for path in (Path(run.output) / "shards").iterdir())
    assert len(sizes) == result.num_shards
    blocks = 512 * summary.counts.samples + 10240 * len(
        sizes
    )  # longer numbers in the JSON, then padding to whole records
    assert abs(result.size_bytes.value - sum(sizes)) <= blocks
    assert sorted(result.shard_bytes) == sizes, "the sizes of shards are exact here"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Painted videos: 40 of a folder in ten units, 20 in each of six tars; every fifth is broken."""
    for number in range(40):
        path = write_video(tmp_path / "v" / f"{number:03d}.mp4", number, num_frames=18 + number)
        if number % 5 == 0:
            path.write_text("broken")
    content = (tmp_path / "v" / "039.mp4").read_bytes()
    padding = b" " * 30_000
    for number in range(6):
        members = [(f"{i}.mp4", (content if i % 5 else b"broken") + padding) for i in range(20)]
        write_tar(tmp_path / f"{number}.tar", members)
    return tmp_path


@pytest.fixture
def painted_job(videos: Path, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    recipe = dataclasses.replace(recipe, buckets=(Bucket(17, *SIZE),), micro_batch=(2,), windows="all")
    return recipe, dataclasses.replace(run, sources=(str(videos / "v"), str(videos / "*.tar")))


def test_nothing_is_written_and_committed_units_are_left_out(painted_job: tuple[Recipe, Run], tiny_card: Card) -> None:
    recipe, run = painted_job
    folder_only = dataclasses.replace(run, sources=run.sources[:1])
    with painted():
        estimate(recipe, folder_only, tiny_card, None, silent)
        assert not Path(run.output).exists()
        encode(recipe, folder_only, tiny_card, silent)
        before = {path: path.stat().st_mtime_ns for path in files_below(Path(run.output))}
        done = format_estimate(estimate(recipe, folder_only, tiny_card, None, silent), None, "")
        result = estimate(recipe, run, tiny_card, None, silent)
    assert "10, all committed: nothing is left to do" in done
    assert (result.num_units, result.num_left) == (16, 6)
    assert {sampled.unit.format for sampled in result.sample.sampled_units} == {"tar"}
    assert "6; 10 of 16 are committed" in format_estimate(result, None, "")
    assert {path: path.stat().st_mtime_ns for path in files_below(Path(run.output))} == before


def test_errors_are_those_of_the_job(painted_job: tuple[Recipe, Run], tiny_card: Card, videos: Path) -> None:
    recipe, run = painted_job
    run = dataclasses.replace(run, sources=(str(videos / "v"),))
    with painted():
        encode(recipe, run, tiny_card, silent)
        with pytest.raises(ConfigError, match=r"fps: None -> 12\.0"):
            estimate(dataclasses.replace(recipe, fps=12.0), run, tiny_card, 200, silent)
        with pytest.raises(ConfigError, match="nearest that fits is 32"):
            estimate(dataclasses.replace(recipe, buckets=(Bucket(17, 36, 32),)), run, tiny_card, 9, silent)
        with pytest.raises(ConfigError, match="--retry-rejects"):
            estimate(recipe, dataclasses.replace(run, retry_rejects="all"), tiny_card, 200, silent)
        with pytest.raises(ConfigError, match="at least 1"):
            estimate(recipe, run, tiny_card, 0, silent)
        write_video(videos / "v" / "001.mp4", 1, num_frames=900)
        with pytest.raises(SourceChanged, match=r"001\.mp4"):
            estimate(recipe, run, tiny_card, 200, silent)


def test_a_bucket_is_only_read_and_must_exist(painted_job: tuple[Recipe, Run], tiny_card: Card, s3: str) -> None:
    recipe, run = painted_job
    with painted():
        result = estimate(recipe, dataclasses.replace(run, output=f"{s3}/out"), tiny_card, 40, silent)
        assert result.num_left == 16 and Store(s3).list_files("out") == {}
        with pytest.raises(ConfigError, match="bucket of s3://nowhere/out does not exist"):
            estimate(recipe, dataclasses.replace(run, output="s3://nowhere/out"), tiny_card, 40, silent)


def test_a_sample_stands_for_all_items(painted_job: tuple[Recipe, Run], tiny_card: Card) -> None:
    recipe, run = painted_job
    with painted():
        result, again = (estimate(recipe, run, tiny_card, 40, silent) for _ in range(2))
        summary = encode(recipe, run, tiny_card, silent)
    assert not result.sample.is_complete and 36 <= len(result.sample.observations) <= 44
    assert format_estimate(result, None, "") == format_estimate(again, None, ""), (
        "the same command samples the same items"
    )
    num_items, is_estimated = result.sample.num_items
    assert is_estimated and num_items == pytest.approx(160, rel=0.02), "a tar's items follow from its bytes"
    clips, rejects = (
        result.total(lambda item: item.counts.samples),
        result.total(lambda item: item.counts.rejects.total()),
    )
    assert clips.low <= summary.counts.samples <= clips.high and clips.low < clips.value < clips.high
    assert rejects.low <= sum(summary.counts.rejects.values()) <= rejects.high
    assert result.num_shards == 16 == len(list((Path(run.output) / "shards").iterdir()))
    assert result.size_bytes.low <= summary.counts.size_bytes <= result.size_bytes.high
    assert "95 % confidence" in format_estimate(result, None, "")

"""Rejects are tried again without changing what is committed."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.output.plan import read_plan
from pipeline.output.verify import verify
from pipeline.progress.summary import Summary
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card
from tests.support.golden import TINY
from tests.support.oracle import assert_sound, tree
from tests.support.painted import SIZE, VARIABLE, assert_together, painted, write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest with two missing targets, a tar with a video that will not encode, and some that are fine."""
    rows = []
    for number in range(6):
        rows.append({"path": f"videos/{number}.mp4", "caption": f"number {number}", "score": number / 2})
        if number not in (1, 4):
            write_video(tmp_path / "videos" / f"{number}.mp4", number)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in (7, 8):
            video = json.dumps({"number": number, "num_frames": 40}).encode()
            for suffix, data in (("mp4", video), ("txt", f"number {number}".encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return tmp_path


@pytest.fixture
def job(folder: Path, tiny_card: Card) -> Any:
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=4, windows="all")
    sources = (str(folder / "list.jsonl"), str(folder / "a.tar"))
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=sources, local=True, cpus=1, max_rejects=1.0)

    def encode_with(**changes: Any) -> tuple[Summary, list[str]]:
        lines: list[str] = []
        with painted():
            return encode(recipe, dataclasses.replace(run, **changes), tiny_card, say=lines.append), lines

    return encode_with


def outcomes(rows: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    return {(row["key"], row["window"]): row["skip_reason"] or row["reject_reason"] or "sample" for row in rows}


def test_an_item_that_was_missing_is_tried_again_whole(folder: Path, job: Any) -> None:
    first, _ = job()
    assert first.counts.rejects == {"fetch/not_found": 2}
    before = tree(folder / "out")
    write_video(folder / "videos" / "4.mp4", 4)
    again, lines = job(retry_rejects="not_found")
    assert "2 rejects to try again in 2 units" in lines
    assert (again.counts.samples, again.counts.rejects) == (first.counts.samples + 2, {"fetch/not_found": 1})
    assert before.items() <= tree(folder / "out").items(), "what was committed has not changed"
    rows = assert_sound(folder / "out")
    assert_together(rows, folder / "out")
    (late,) = [row for row in rows if row["key"] == "videos/4.mp4" and row["window"] == 1]
    assert late["meta_score"] == 2.0 and late["shard"]
    assert verify(Store(str(folder / "out")), say=lambda line: None).problems == []


def test_only_rejected_windows_of_a_partly_good_item_are_tried_again(
    folder: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, '{"8": "nan"}')
    job()
    monkeypatch.setenv(VARIABLE, "{}")
    job(retry_rejects="encode/nonfinite")
    rows = assert_sound(folder / "out")
    assert {outcomes(rows)["8", window] for window in (0, 1)} == {"sample"} and outcomes(rows)["8", 2] == "remainder"
    (unit,) = [unit for unit in read_plan(Store(str(folder / "out"))).units if unit.retries]
    (retry,) = unit.retries
    assert (unit.format, retry.ordinal, retry.windows) == ("tar", 1, (0, 1))


def test_rejects_may_be_tried_again_and_again(folder: Path, job: Any) -> None:
    job()
    for generation in (1, 2):
        summary, _ = job(retry_rejects="all")
        assert summary.counts.rejects == {"fetch/not_found": 2}
        assert (folder / "out" / "index" / f"{generation:04d}.json").exists()
    write_video(folder / "videos" / "1.mp4", 1)
    write_video(folder / "videos" / "4.mp4", 4)
    summary, _ = job(retry_rejects="fetch/not_found")
    assert summary.counts.rejects == {}
    inputs = {(f"file://{folder}/list.jsonl", ordinal, window) for ordinal in range(6) for window in range(3)}
    inputs |= {(f"file://{folder}/a.tar", ordinal, window) for ordinal in range(2) for window in range(3)}
    assert_together(assert_sound(folder / "out", inputs), folder / "out")


def test_an_interrupted_retry_resumes_and_plans_nothing_twice(folder: Path, job: Any) -> None:
    job()
    job(retry_rejects="all")
    finished = tree(folder / "out")
    retries = [unit.name for unit in read_plan(Store(str(folder / "out"))).units if unit.retries]
    (folder / "out" / "index" / "0001.json").unlink()
    (folder / "out" / "metadata" / f"{retries[0]}.0.parquet").unlink()
    _, lines = job(retry_rejects="all")
    assert any("come first" in line for line in lines)
    assert tree(folder / "out") == finished
    assert_sound(folder / "out")


def test_a_reason_without_rejects_is_answered_with_the_reasons_there_are(folder: Path, job: Any) -> None:
    job()
    before = tree(folder / "out")
    _, lines = job(retry_rejects="timeout")
    assert "no rejects named 'timeout' to try again; there are fetch/not_found (2)" in lines
    assert tree(folder / "out") == before


def test_later_sources_may_not_change_the_type_of_a_column(folder: Path, job: Any) -> None:
    job()
    (folder / "more.jsonl").write_text('{"path": "videos/2.mp4", "score": "high"}\n')
    with pytest.raises(ConfigError, match=r"column 'score' is string in .*more\.jsonl and double"):
        job(sources=(str(folder / "list.jsonl"), str(folder / "a.tar"), str(folder / "more.jsonl")))

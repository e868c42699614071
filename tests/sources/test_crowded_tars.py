"""Tars with very many members that hold nothing: bounded time, memory and rows, and a job that stops before their end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.tar import format as tar_format
from stvae import Card
from tests.sources.test_hostile_tars import END, header, member, read
from tests.support.oracle import assert_sound
from tests.support.painted import painted


@pytest.mark.parametrize(("suffix", "reason"), [("txt", "no_media"), ("mp4", "empty")])
def test_past_a_number_one_reject_stands_for_all_keys_that_hold_nothing(
    suffix: str, reason: str, tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_format, "MAX_WITHOUT_VIDEO", 3)
    nothing = [header(f"{n}.{suffix}".encode(), 0) for n in range(8)]
    video = member(b"video.mp4", b'{"number": 7, "num_frames": 17}')
    data = b"".join(nothing[:5]) + video + b"".join(nothing[5:]) + END
    items = read(tmp_path, recipe, data)
    assert [item.ordinal for item in items] == [0, 1, 2, 5, 8], "the others keep their ordinals and so their ids"
    assert items[-1].fault is not None and items[-1].fault.message.startswith(
        "5 more keys of the tar, of which this is"
    )
    with painted():
        encode(recipe, dataclasses.replace(run, sources=(str(tmp_path / "a.tar"),)), tiny_card, say=lambda line: None)
    rows = assert_sound(Path(run.output))
    assert [row["reject_reason"] for row in rows] == [reason] * 3 + [None, "no_media"]


def test_a_job_stops_within_a_unit_whose_items_are_rejected(
    tmp_path: Path, recipe: Recipe, run: Run, tiny_card: Card
) -> None:
    suffixes = ("txt", "mp4")  # no media, and no bytes
    headers = (header(b"%05d.%s" % (n, suffixes[n % 2].encode()), 0) for n in range(40_000))
    (tmp_path / "a.tar").write_bytes(b"".join(headers) + END)
    run = dataclasses.replace(run, sources=(str(tmp_path / "a.tar"),), max_rejects=0.5)
    with painted():
        summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert summary.exit_code == 3 and not summary.finished and summary.units_done_now == 0
    assert 1000 <= summary.counts.windows < 40_000 and summary.counts.rejects.total() == summary.counts.windows
    assert not list(Path(run.output).glob("metadata/*")) and not list(Path(run.output).glob("attempts/*/*.json"))

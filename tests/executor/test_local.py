"""The encoder in this process: how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline.bucket import Bucket
from pipeline.errors import StoreError
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.sources.item import Item
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.retry import retried
from stvae import Card
from tests.support.golden import TINY
from tests.support.painted import SIZE, painted, write_videos


class Busy(OSError):
    """A server's answer 429 that asks for a long pause."""

    status = 429
    headers = {"Retry-After": "300"}  # noqa: RUF012


def test_a_job_that_ends_does_not_wait_for_requests_to_be_made_again(
    tmp_path: Path, tiny_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit fails while a request of another one waits for five minutes."""
    waiting = threading.Event()

    def ask() -> NoReturn:
        waiting.set()
        raise Busy

    def fetch(item: Item, recipe: Recipe) -> Any:
        if item.ordinal:
            retried(ask)
        assert waiting.wait(60)
        raise StoreError("the disk is full")

    monkeypatch.setattr("pipeline.encode.shard_attempt.fetch", fetch)
    videos = write_videos(tmp_path / "videos", 2)
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=1)
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(videos),), local=True, cpus=1)
    started_s = time.monotonic()
    with painted(), pytest.raises(StoreError):
        encode(recipe, run, tiny_card, say=lambda line: None)
    assert time.monotonic() - started_s < 60


def test_pauses_are_pauses_again_afterwards() -> None:
    with WAITS.given_up():
        WAITS.sleep(60)
    started_s = time.monotonic()
    WAITS.sleep(0.05)
    assert time.monotonic() - started_s >= 0.05

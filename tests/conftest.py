from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pipeline.recipe import Bucket, Recipe, Run
from stvae import Card, read_card
from tests.support.golden import TINY
from tests.support.s3_server import s3_bucket

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no token is made in the home of whoever runs the tests
settings.register_profile("untimed", deadline=None)  # no test asserts speed
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_card() -> Card:
    return read_card(str(TINY))


@pytest.fixture
def recipe(tiny_card: Card) -> Recipe:
    """Two small buckets, square and wide, everything else by default."""
    buckets = (Bucket(17, 32, 32), Bucket(17, 32, 56))
    return Recipe(vae=tiny_card.sha256, buckets=buckets, micro_batch=(1, 1), unit_clips=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(), local=True, cpus=2, max_rejects=1.0)


@pytest.fixture(autouse=True)
def _same_threads_and_priority() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "a library has made this thread a real-time one"


@pytest.fixture
def s3() -> Iterator[str]:
    """URL of an empty bucket on a real S3 server."""
    with s3_bucket() as url:
        yield url

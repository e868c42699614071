"""Settings and fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Threads of torch sleep while they wait for each other. Spinning, they would take the processors from the tests beside
# them, which was up to four times slower where two processes share two processors. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray would write a token to the home folder
os.environ.setdefault("NO_GCE_CHECK", "true")  # no machine of Google is asked for credentials
os.environ.setdefault("LATENTMILL_PATIENCE_S", "5")  # of 600: tests repair their stores soon, or never

import pytest
import torch
from hypothesis import settings

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from stvae import Card, read_card
from tests.support.golden import TINY
from tests.support.s3_server import s3_bucket

settings.register_profile("untimed", deadline=None)  # no test asserts speed
settings.load_profile("untimed")

LONGEST = ("tests/end_to_end/", "tests/project/test_demo.py", "tests/stvae/test_vaes.py", "tests/video/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first, so that no process has a long file left when the others are done."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="session")
def tiny_card() -> Card:
    """The card of a tiny Open-Sora VAE with random weights."""
    return read_card(str(TINY))


@pytest.fixture
def recipe(tiny_card: Card) -> Recipe:
    """A recipe with two small buckets, one square and one wide, and defaults for everything else."""
    buckets = (Bucket(17, 32, 32), Bucket(17, 32, 56))
    return Recipe(vae=tiny_card.sha256, buckets=buckets, micro_batch=(1, 1), unit_clips=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in this process with two decoders, which writes to ``tmp_path / "out"``."""
    return Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(), local=True, cpus=2, max_rejects=1.0)


@pytest.fixture(autouse=True)
def _same_threads_and_priority() -> Iterator[None]:
    """Restores the number of torch's threads; fails a test that leaves this thread with real-time priority."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "a library gave this thread real-time priority"


@pytest.fixture
def s3() -> Iterator[str]:
    """The URL of an empty bucket on a real S3 server."""
    with s3_bucket() as url:
        yield url

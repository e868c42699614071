"""Settings and fixtures for every test."""

from __future__ import annotations

import os
import signal
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

# A shell that starts the tests in the background lets them ignore Ctrl-C, which children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WAITING = ("tests/end_to_end/", "tests/project/test_demo.py", "tests/executor/test_ray_connection.py")
"""Files that wait for processes, most of all for Ray, and take longest."""
LONGEST = ("tests/stvae/test_vaes.py", "tests/video/")
"""Files that compute for longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that wait among those that compute, so that processors are busy while tests wait.

    The longest files start first, and the last file that waits when a quarter of the others is left, so that no process
    has a long file left when the others are done.
    """
    file_of = {item: item.nodeid.partition("::")[0] for item in items}
    files = list(dict.fromkeys(file_of.values()))
    waiting = [file for file in files if file.startswith(WAITING)]
    computing = sorted(set(files) - set(waiting), key=lambda file: (not file.startswith(LONGEST), files.index(file)))
    place = {file: 0.75 * number / len(waiting) for number, file in enumerate(waiting)}
    place |= {file: number / len(computing) for number, file in enumerate(computing)}
    items.sort(key=lambda item: place[file_of[item]])


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

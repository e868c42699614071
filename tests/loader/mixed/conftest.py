"""Two sets of latents and their mixture, and what the tests of mixtures share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.loader import MixedBatches, MixedDataset
from tests.support.latent_set import write_latents

WIDE, TALL, IMAGE = Bucket(17, 32, 56), Bucket(17, 56, 32), Bucket(1, 32, 56)
STEPS = 16
"""Steps of an epoch of 24 + 8 samples in batches of 2."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of two buckets."""
    return write_latents(tmp_path_factory.mktemp("mixed") / "large", [WIDE, TALL] * 12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 samples of two buckets, one of which the large set has too."""
    return write_latents(tmp_path_factory.mktemp("mixed") / "small", [WIDE, IMAGE] * 4, first_key=100)


@pytest.fixture
def mixed(large: Path, small: Path) -> MixedDataset:
    return MixedDataset({large: 0.25, small: 0.75}, seed=3)


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def take(batches: MixedBatches, count: int) -> list[list[str]]:
    """Ids of the next batches, over as many epochs as they need."""
    seen: list[list[str]] = []
    while len(seen) < count:
        seen += ids(itertools.islice(batches, count - len(seen)))
    return seen

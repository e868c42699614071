"""Real trainers on two ranks: what each of them trained on over three epochs, sample by sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from tests.loader.trainer_loops import BATCH_SIZE, EPOCHS, LOOPS, RANKS, mix
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 32)] * 8
STEPS = 6
"""Steps of an epoch of 24 samples in batches of 2 on 2 ranks."""


def train(folder: Path, *loops: str) -> None:
    """Run loops of ``trainer_loops`` under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.loader.trainer_loops", str(folder), *loops],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[:6000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with outputs, and what two ranks have recorded of each loop of ``trainer_loops``.

    ``out`` has 24 samples of three buckets, eight of them images; ``out-small`` has 8 others; ``growing/growing`` lacks a
    unit, which one loop puts there. Lightning and accelerate each make a process group; the bare loops use Lightning's.
    ``test_page_recipes.py`` has Ray Train.
    """
    folder = tmp_path_factory.mktemp("trainers")
    write_latents(folder / "out", BUCKETS)
    write_latents(folder / "out-small", BUCKETS[:2] * 4, first_key=100)
    for name in LOOPS:
        (folder / name).mkdir()
    growing = write_latents(folder / "growing" / "growing", BUCKETS, index=False)
    newest = max((growing / "metadata").iterdir())
    later = folder / "growing" / "later"
    later.mkdir()
    (later / "name").write_text(newest.name)
    newest.rename(later / "unit.parquet")
    train(folder, "lightning", "ddp", "mixed", "growing")
    train(folder, "accelerate")
    return folder


@pytest.fixture
def output(trained: Path) -> Path:
    return trained / "out"


def steps_of(records: Path, name: str) -> list[list[Any]]:
    """The steps of each rank: [rank][step] is [epoch, ids, shape]."""
    return [json.loads((records / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]


def expected(output: Path, **options: Any) -> list[list[Any]]:
    """What the ranks' batches are when each is iterated over alone."""
    data = LatentDataset(str(output))
    ranks = [data.batches(BATCH_SIZE, rank=rank, world_size=RANKS, **options) for rank in range(RANKS)]
    return [
        [[epoch, batch["id"], list(batch["latents"].shape)] for epoch in range(EPOCHS) for batch in rank]
        for rank in ranks
    ]


def check_whole(ranks: list[list[Any]]) -> None:
    """Every epoch has every sample once, in steps of one shape."""
    for epoch in range(EPOCHS):
        steps = [[step for step in rank if step[0] == epoch] for rank in ranks]
        assert [len(rank) for rank in steps] == [STEPS] * RANKS
        names = [name for rank in steps for step in rank for name in step[1]]
        assert len(names) == len(set(names)) == len(BUCKETS)
    for one, other in zip(*ranks, strict=True):
        assert one[2] == other[2]


def test_a_bare_ddp_loop(trained: Path, output: Path) -> None:
    ranks = steps_of(trained / "ddp", "ddp")
    check_whole(ranks)
    assert ranks == expected(output)


def test_accelerate(trained: Path, output: Path) -> None:
    records = trained / "accelerate"
    ranks = steps_of(records, "accelerate_batches")
    check_whole(ranks)
    assert ranks == expected(output)
    loader = steps_of(records, "accelerate_loader")
    check_whole(loader)
    assert steps_of(records, "accelerate_skip") == [[s for s in rank if s[0] == 1][2:] for rank in loader]
    for rank in range(RANKS):
        refused = (records / f"refused-{rank}.txt").read_text()
        assert f"ConfigError: this StepSampler already gives the batches of rank {rank} of 2" in refused


def test_lightning(trained: Path, output: Path) -> None:
    exact = expected(output)
    for name in ("lightning", "lightning_validated", "lightning_resumed"):
        ranks = steps_of(trained / "lightning", name)
        check_whole(ranks)
        assert ranks == exact, name
    whole = expected(output, shuffle=False, loop="once")
    for rank, steps in enumerate(steps_of(trained / "lightning", "lightning_validated_validation")):
        one_pass = [step[1:] for step in whole[rank][:STEPS]]
        assert [step[1:] for step in steps if step[0] == -1] == one_pass[:2], "the sanity check takes two batches"
        assert [step[1:] for step in steps if step[0] == 1] == one_pass
        assert {step[0] for step in steps} == {-1, 1}


def test_several_sets_under_ddp_and_lightning(trained: Path, output: Path) -> None:
    records = trained / "mixed"
    mixed = mix(LatentDataset(output))
    exact = []
    for rank in range(RANKS):
        batches = mixed.batches(BATCH_SIZE, rank=rank, world_size=RANKS)
        exact.append(
            [[e, b["id"], list(b["latents"].shape), Path(b["dataset"]).name] for e in range(EPOCHS) for b in batches]
        )
    for name in ("ddp", "lightning_resumed"):
        assert steps_of(records, name) == exact, name
    for one, other in zip(*exact, strict=True):
        assert one[2:] == other[2:], "one set and one shape on all ranks"
    steps = Counter((epoch, name) for epoch, _, _, name in exact[0])
    assert abs(steps[0, "out"] - 4) <= 1 and abs(steps[1, "out-small"] + steps[2, "out-small"] - 12) <= 1, steps
    for name, size in (("out", 24), ("out-small", 8)):
        order = [id_ for pair in zip(*exact, strict=True) if pair[0][3] == name for step in pair for id_ in step[1]]
        assert len(order) > 16 and len(set(order[:size])) == len(order[:size]), "an epoch of a set has a sample once"
    assert "would train on different batches: weights=" in (records / "refused-1.txt").read_text()
    assert not (records / "refused-0.txt").exists()


def test_ranks_agree_on_one_version_of_a_growing_output(trained: Path) -> None:
    records = trained / "growing"
    ranks = steps_of(records, "growing")
    names = [name for rank in ranks for step in rank for name in step[1]]
    assert len(ranks[0]) == len(ranks[1]) == 3 and len(names) == len(set(names)) == 12
    assert [step[2] for step in ranks[0]] == [step[2] for step in ranks[1]]
    refused = (records / "refused-1.txt").read_text()
    assert "rank 1 and rank 0 would train on different batches: samples=" in refused and "where=all" in refused

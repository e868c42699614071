"""Every recipe of the loader's page, as it is written, on two ranks for three epochs; counts the samples of each rank."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.encode_text import main as encode_text
from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from tests.loader.page_recipes import BLOCKS, EPOCHS, RECIPES, block_of
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

BUCKETS = [Bucket(51, 32, 32), Bucket(51, 32, 56)] * 12
"""Buckets of 24 samples. Sample n has the score n / 2."""
GROUPS = [Bucket(1, 32, 32, "240p")] * 12 + [Bucket(1, 64, 112, "480p")] * 24
ON_TWO_RANKS = (
    *("start", "selection", "text", "filters", "groups", "sets", "sets_loader"),
    *("open_sora", "data_loader", "webdataset", "accelerate", "lightning"),
)
CHECKED_ALONE = ("groups", "sets", "sets_loader", "webdataset")
SAMPLES = {
    "start": 8,  # numbers 11 to 23, of which each bucket gives one step of 4
    "filters": 8,  # numbers 11 to 23, then 13 to 23
    "selection": 56,  # numbers 3 to 23 in 3 windows: 30 and 33, in steps of 8
    "webdataset": 24,
    "energon": 24,
}
"""Samples of an epoch on all ranks together, where they are not all 24."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs that the page speaks of."""
    folder = tmp_path_factory.mktemp("page")
    output = write_latents(folder / "latents", BUCKETS)
    layer = ["--encoder", "demo", "--layer", "t5", "--captions", "caption", "--local", "--cpus", "1"]
    assert encode_text([str(output), *layer]) == 0
    write_latents(folder / "two-sizes", GROUPS)
    write_latents(folder / "scenic", BUCKETS, first_key=100)
    write_latents(folder / "faces", BUCKETS[:16], first_key=200)
    columns = LatentDataset(str(output)).columns
    numbers = [int(key) for key in columns["key"].to_pylist()]
    extra = {"id": columns["id"], "clip_score": [n / 10 - 0.05 for n in numbers], "long_caption": ["long"] * 24}
    pq.write_table(pa.table(extra), folder / "recaptioned.parquet")
    return folder


def run(folder: Path, *names: str, ranks: int) -> None:
    """Run blocks in one process per rank; Ray starts its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks else []), "-m", "tests.loader.page_recipes", str(folder), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def on_two_ranks(folder: Path) -> Path:
    """The records of the blocks that two processes of ``torchrun`` run one after the other."""
    run(folder, *ON_TWO_RANKS, ranks=2)
    return folder


Steps = list[tuple[list[str], list[int]]]


def steps_of(folder: Path, name: str, rank: int, epoch: int) -> Steps:
    """Ids and shape of each step of a rank."""
    records = json.loads((folder / f"{name}-{rank}.json").read_text())
    assert {step[0] for step in records} == set(range(EPOCHS))
    return [(ids, shape) for at, ids, shape in records if at == epoch]


def check(folder: Path, name: str, ranks: tuple[int, ...] = (0, 1), aligned: bool = True) -> None:
    """Every epoch has every sample at most once, and the expected number of them; ranks have equal steps."""
    orders = set()
    for epoch in range(EPOCHS):
        steps = [steps_of(folder, name, rank, epoch) for rank in ranks]
        if aligned:
            assert len({tuple(str(shape) for _, shape in rank) for rank in steps}) == 1, "ranks have equal shapes"
        names = [id_ for rank in steps for ids, _ in rank for id_ in ids]
        assert all(steps), "a rank has no step"
        assert len(names) == len(set(names)) == SAMPLES.get(name, len(BUCKETS)), f"epoch {epoch}"
        orders.add(str(steps))
    assert len(orders) == EPOCHS or name == "webdataset", "every epoch has an order of its own"


def test_every_block_of_the_page_is_run() -> None:
    assert sorted(map(block_of, RECIPES.values())) == sorted(BLOCKS)
    assert {*ON_TWO_RANKS, "ray", "parallel", "energon"} == set(RECIPES)


@pytest.mark.parametrize("name", [name for name in ON_TWO_RANKS if name not in CHECKED_ALONE])
def test_a_recipe_on_two_ranks(name: str, on_two_ranks: Path) -> None:
    check(on_two_ranks, name)


def test_the_recipe_of_groups(on_two_ranks: Path) -> None:
    """The epoch ends when a group is drawn that is used up, so its length varies."""
    for epoch in range(EPOCHS):
        one, other = (steps_of(on_two_ranks, "groups", rank, epoch) for rank in (0, 1))
        assert [shape for _, shape in one] == [shape for _, shape in other]
        names = [id_ for ids, _ in one + other for id_ in ids]
        assert len(names) == len(set(names)) == 4 * len(one) >= 12
        assert len({str(shape) for _, shape in one}) == 2, "both sizes come"


def test_the_recipe_of_filters_that_change(folder: Path, on_two_ranks: Path) -> None:
    passing = set(LatentDataset(folder / "latents", "meta_score > 6").columns["id"].to_pylist())
    for epoch, strict in ((0, False), (1, False), (2, True)):
        steps = [step for rank in (0, 1) for step in steps_of(on_two_ranks, "filters", rank, epoch)]
        assert ({id_.partition("+")[0] for ids, _ in steps for id_ in ids} <= passing) is strict


@pytest.mark.parametrize(("name", "shares"), [("sets", (0.3, 0.125, 0.125)), ("sets_loader", (0.3, 0.3, 0.3))])
def test_the_recipes_of_several_sets(folder: Path, on_two_ranks: Path, name: str, shares: tuple[float, ...]) -> None:
    """Each step has one set on both ranks; a set has its share of the steps, and no sample twice in its own epoch."""
    faces = {f"{id_}+0" for id_ in LatentDataset(folder / "faces").columns["id"].to_pylist()}
    used: list[str] = []
    for epoch, share in enumerate(shares):
        one, other = (steps_of(on_two_ranks, name, rank, epoch) for rank in (0, 1))
        assert [shape for _, shape in one] == [shape for _, shape in other]
        both = [set(ids + others) for (ids, _), (others, _) in zip(one, other, strict=True)]
        of_faces = [step for step in both if step <= faces]
        assert all(len(step) == 4 and (step <= faces or not step & faces) for step in both)
        assert abs(len(of_faces) - share * len(both)) <= 2
        used += [id_ for step in of_faces for id_ in step]
    assert all(len(set(used[start : start + 16])) == 16 for start in range(0, len(used) - 15, 16))


def test_the_webdataset_recipe_gives_each_rank_its_shards(on_two_ranks: Path) -> None:
    check(on_two_ranks, "webdataset", aligned=False)


def test_the_recipe_of_ray_train(folder: Path) -> None:
    run(folder, "ray", ranks=0)
    check(folder, "ray")
    data = LatentDataset(str(folder / "latents"))
    for rank in (0, 1):
        batches = data.batches(2, seed=0, rank=rank, world_size=2)
        for epoch in range(EPOCHS):
            exact = [[f"{id_}+0" for id_ in batch["id"]] for batch in batches]
            assert [ids for ids, _ in steps_of(folder, "ray", rank, epoch)] == exact


def test_the_recipe_of_parallel_groups(folder: Path) -> None:
    """Four processes: both of a group get the same samples, and the groups together get each sample once."""
    run(folder, "parallel", ranks=4)
    check(folder, "parallel", ranks=(0, 2))
    for one, other in ((0, 1), (2, 3)):
        for epoch in range(EPOCHS):
            assert steps_of(folder, "parallel", one, epoch) == steps_of(folder, "parallel", other, epoch)


@pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="megatron-energon is not installed")
def test_the_recipe_of_energon(folder: Path) -> None:
    """Runs the page's commands too. Skipped unless the package is there; ``python -m tests.bench.readers`` installs it."""
    tool = shutil.which("energon", path=str(Path(sys.executable).parent))
    assert tool is not None
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    assert f"energon prepare latents {' '.join(options)}\n" in (ROOT / "pipeline" / "loader" / "README.md").read_text()
    subprocess.run([tool, "prepare", "latents", *options], cwd=folder, check=True, capture_output=True)
    run(folder, "energon", ranks=2)
    check(folder, "energon", aligned=False)

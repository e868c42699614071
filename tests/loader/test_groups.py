"""Bucket groups in the loader: mixed by weight, the same on all ranks, resumed exactly."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.export_dataset import main as export
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import StepSampler
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

LOW, LOW_WIDE, HIGH = Bucket(1, 32, 32, "240p"), Bucket(1, 32, 56, "240p"), Bucket(1, 64, 112, "480p")
SAME = dataclasses.replace(LOW, group="other")
BUCKETS = [LOW, LOW_WIDE] * 60 + [HIGH] * 80 + [SAME] * 8
WEIGHTS = {"240p": 0.3, "480p": 0.7}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_latents(tmp_path_factory.mktemp("mix") / "out", BUCKETS, samples_per_shard=50))


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def groups_of(data: LatentDataset) -> dict[str, str]:
    return dict(zip(data.columns["id"].to_pylist(), data.columns["group"].to_pylist(), strict=True))


def test_every_step_has_one_group_and_one_bucket_drawn_by_weight(output: str) -> None:
    data = LatentDataset(output)
    group_of, steps = groups_of(data), Counter[str]()
    for epoch in range(8):
        batches = data.batches(2, groups=WEIGHTS, seed=5)
        batches.load_state_dict(batches.state_dict() | {"epoch": epoch})
        seen: list[str] = []
        for batch in batches:
            (group,) = {group_of[name] for name in batch["id"]}
            assert len(set(batch["height"].tolist())) == len(set(batch["width"].tolist())) == 1
            steps[group] += 1
            seen += batch["id"]
        assert len(seen) == len(set(seen)), "no sample comes twice"
        assert len(seen) + data_dropped(data, epoch) == 200, "samples of groups without weight do not count"
    assert steps.keys() == {"240p", "480p"} and 0.62 < steps["480p"] / steps.total() < 0.78


def data_dropped(data: LatentDataset, epoch: int) -> int:
    batches = data.batches(2, groups=WEIGHTS, seed=5)
    batches.load_state_dict(batches.state_dict() | {"epoch": epoch})
    return batches.dropped


def test_ranks_agree_and_a_state_resumes_exactly_with_another_world_size(output: str, tmp_path: Path) -> None:
    data = LatentDataset(output, cache=tmp_path)
    whole = ids(data.batches(4, groups=WEIGHTS, rank=0, world_size=1))
    halves = [ids(data.batches(2, groups=WEIGHTS, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    batches = data.batches(2, groups=WEIGHTS, rank=0, world_size=2)
    iterator = iter(batches)
    for _ in range(5):
        next(iterator)
    state = batches.state_dict()
    resumed = LatentDataset(output).batches(4, groups={"480p": 0.7, "240p": 0.3}, rank=0, world_size=1)
    resumed.load_state_dict(state)
    assert ids(resumed) == whole[5:]
    for other in ({"240p": 0.5, "480p": 0.5}, None):
        with pytest.raises(ConfigError, match=r"differs in groups \("):
            data.batches(2, groups=other, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"groups \(None in the state"):
        data.batches(2, groups=WEIGHTS).load_state_dict(data.batches(2).state_dict())


def test_the_loop_of_the_page_runs(output: str) -> None:
    page = (ROOT / "pipeline" / "loader" / "README.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "two-sizes" in text]
    names: dict[str, Any] = {}
    exec(block.replace("s3://bucket/two-sizes", output), names)  # noqa: S102 (our own page)
    assert names["x"].shape[:2] == (8, 4) and names["batches"].epoch == 1


def test_without_weights_all_groups_train_in_proportion(output: str) -> None:
    batches = LatentDataset(output).batches(2)
    assert batches.state_dict()["schedule_hash"].split(" ")[-1] == "shapes=bucket", "states of earlier runs stay valid"
    assert len({name for batch in batches for name in batch["id"]}) == len(BUCKETS)


def test_repeating_goes_on_until_all_groups_are_used(output: str) -> None:
    data = LatentDataset(output)
    batches = data.batches(4, groups={"240p": 1, "other": 1}, tail="repeat", seed=1)
    repeated = batches.repeated
    counts = Counter(name for batch in batches for name in batch["id"])
    expected = {name for name, group in groups_of(data).items() if group in ("240p", "other")}
    assert counts.keys() == expected, "every sample comes"
    assert counts.total() - len(expected) == repeated > 40
    assert {group for name, group in groups_of(data).items() if counts[name] > 1} == {"other"}


@pytest.mark.parametrize("options", [{"tail": "pad"}, {"shapes": "pad"}, {"shapes": "pack"}])
def test_other_policies_mix_groups_too(output: str, options: dict[str, Any]) -> None:
    data = LatentDataset(output)
    size = {"tokens_per_batch": 250} if options.get("shapes") == "pack" else {"batch_size": 7}
    batches = data.batches(**size, groups=WEIGHTS, **options)
    group_of = groups_of(data)
    found = [{group_of[name] for name in batch["id"] if name} for batch in batches]
    assert len(found) > 5 and all(len(groups) == 1 for groups in found)


def test_groups_mix_in_a_data_loader_and_under_a_filter(output: str) -> None:
    data = LatentDataset(output)
    sampler = StepSampler(data, 2, groups=WEIGHTS)
    schedule = data.batches(2, groups=WEIGHTS).schedule()
    expected = [schedule.batch(step, 0).tolist() for step in range(len(schedule))]
    assert [[row for row, _ in step] for step in sampler] == expected
    wide = LatentDataset(output, where="width > 40")
    assert {width for batch in wide.batches(2, groups=WEIGHTS) for width in batch["width"].tolist()} == {56, 112}
    with pytest.raises(ConfigError, match="the 0 samples of group '480p' fill no step"):
        len(LatentDataset(output, where="group == '240p'").batches(2, groups=WEIGHTS))


def test_a_batch_has_the_columns_that_training_conditions_on(output: str) -> None:
    data = LatentDataset(output)
    for batch in data.batches(2, groups=WEIGHTS, columns=["group", "crop_top", "meta_score", "fps"]):
        more: dict[str, Any] = dict(batch)
        assert len(set(more["group"])) == 1 and more["crop_top"].tolist() == [0, 0]
        assert more["meta_score"].tolist() == [int(key) / 2 for key in batch["key"]]
    with pytest.raises(ConfigError, match="there is no column 'crop'; there are id, source"):
        data.batches(2, columns=["crop"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"720p": 1.0}, "there is no bucket group '720p'; there are 240p, 480p, other"),
        ({"240p": -1.0}, "must not be negative"),
        ({"240p": 0.0}, "nor all zero"),
        ({}, "nor all zero"),
        ({"240p": float("nan")}, "must not be negative"),
    ],
)
def test_wrong_groups_are_refused(output: str, groups: dict[str, float], message: str) -> None:
    data = LatentDataset(output)
    for use in (lambda: data.batches(2, groups=groups), lambda: StepSampler(data, 2, groups=groups)):
        with pytest.raises(ConfigError, match=message):
            use()


def test_an_output_without_groups_says_so(tmp_path: Path) -> None:
    data = LatentDataset(str(write_latents(tmp_path / "out", [Bucket(1, 32, 32)] * 3)))
    with pytest.raises(ConfigError, match="this output has no bucket groups"):
        data.batches(1, groups={"240p": 1.0})
    assert data.columns["group"].null_count == 3


def test_an_export_has_the_group_where_there_are_groups(output: str, tmp_path: Path) -> None:
    where = ["--where", "group = '480p'"]
    assert export([output, "--to", "parquet", "--local", "--output", str(tmp_path / "e"), *where]) == 0
    table = pq.read_table(tmp_path / "e" / "data")
    assert table["group"].to_pylist() == ["480p"] * 80 and np.isfinite(table["latents"][0].as_py()).all()
    write_latents(tmp_path / "plain", [Bucket(1, 32, 32)])
    assert export([str(tmp_path / "plain"), "--to", "parquet", "--local", "--output", str(tmp_path / "p")]) == 0
    assert "group" not in pq.read_table(tmp_path / "p" / "data").column_names

"""The README's steps for adding a member, followed with its own example: the frame in the middle of a clip."""

from __future__ import annotations

import dataclasses
import io
import re
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import estimate
from pipeline.loader import LatentDataset
from pipeline.output import members
from pipeline.output.verify import verify
from pipeline.recipe import Recipe, Run
from pipeline.report.round_trip import source_frames
from pipeline.run import encode
from pipeline.storage.store import Store
from stvae import Card, load_vae
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT

README = ROOT / "pipeline" / "output" / "README.md"


@pytest.fixture
def middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code of the README's first step in ``members.py``."""
    section = README.read_text().partition("## Add a member")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    namespace = dict(vars(members))
    exec(textwrap.dedent(code), namespace)  # noqa: S102
    monkeypatch.setattr(members, "MEMBERS", namespace["MEMBERS"])


@pytest.fixture
def job(tmp_path: Path, tiny_card: Card) -> tuple[Recipe, Run]:
    for seed in range(3):
        make_clip(tmp_path / "videos" / f"{seed}.mp4", 20, size=(32, 56), seed=seed)
    recipe = Recipe(
        vae=tiny_card.sha256,
        buckets=(Bucket(17, 32, 56),),
        micro_batch=(2,),
        conditioning="first-last",
        compute_dtype="float32",
    )
    run = Run(output=str(tmp_path / "out"), vae=str(TINY), sources=(str(tmp_path / "videos"),), local=True)
    return recipe, run


def silent(line: str) -> None:
    pass


def test_a_member_of_the_readme_is_written_described_verified_and_loaded(
    middle: None, job: tuple[Recipe, Run], tiny_card: Card
) -> None:
    recipe, run = job
    foreseen = estimate(recipe, run, tiny_card, None, silent)
    encode(recipe, run, tiny_card, silent)
    output = Path(run.output)
    rows = assert_sound(output)
    (shard,) = (output / "shards").iterdir()
    with tarfile.open(shard) as tar:
        names = [name.partition(".")[2] for name in tar.getnames()]
    assert names == ["latent.npy", "first.npy", "last.npy", "middle.npy", "json"] * 3
    assert foreseen.shard_bytes == [shard.stat().st_size]

    (metadata,) = (output / "metadata").iterdir()
    columns = [name for name in pq.read_schema(metadata).names if name.startswith("middle_")]
    assert columns == [f"middle_{name}" for name in ("offset", "nbytes", "tensor_offset", "tensor_nbytes", "crc32c")]

    data = LatentDataset(run.output)
    (batch,) = data.batches(3, conditioning=True, normalized=False, verify=True)
    vae = load_vae(str(TINY))
    for i, name in enumerate(batch["id"]):
        row = data.columns["id"].to_pylist().index(name)
        (frames,) = source_frames(run, data, [row])
        alone = torch.from_numpy(frames[8:9]).permute(3, 0, 1, 2)[None]
        expected = vae.encode(alone)[0, : tiny_card.latent_channels]
        loaded = batch["middle_latents"][i]  # type: ignore[typeddict-item]
        torch.testing.assert_close(loaded, expected, atol=5e-3, rtol=1e-3)
        (read,) = data.read(np.array([row]), member="middle")
        assert read.shape == (tiny_card.latent_channels, 1, 4, 7) and np.array_equal(read, loaded.numpy())

    assert verify(Store(run.output), silent).problems == []
    row = rows[1]
    with shard.open("r+b") as file:
        file.seek(row["middle_tensor_offset"] + 10)
        file.write(b"\x7f\x7f")
    problems = [what for _, what in verify(Store(run.output), silent).problems]
    assert f"the tensor of {row['id']} ({row['key']}) at {row['middle_tensor_offset']} is damaged" in problems


def test_other_recipes_have_neither_the_member_nor_its_columns(
    middle: None, job: tuple[Recipe, Run], tiny_card: Card
) -> None:
    recipe, run = dataclasses.replace(job[0], conditioning="first"), job[1]
    encode(recipe, run, tiny_card, silent)
    rows = assert_sound(Path(run.output))
    assert all("first_offset" in row and "middle_offset" not in row and "last_offset" not in row for row in rows)
    (batch,) = LatentDataset(run.output).batches(3, conditioning=True)
    assert "first_latents" in batch and "middle_latents" not in batch


def test_a_middle_frame_is_stored_as_the_array_that_its_file_name_says(
    middle: None, job: tuple[Recipe, Run], tiny_card: Card
) -> None:
    recipe, run = job
    encode(recipe, run, tiny_card, silent)
    data = LatentDataset(run.output)
    (shard,) = (Path(run.output) / "shards").iterdir()
    with tarfile.open(shard) as tar:
        for row, name in enumerate(data.columns["id"].to_pylist()):
            member = tar.extractfile(f"{name}.middle.npy")
            assert member is not None
            array = np.load(io.BytesIO(member.read()), allow_pickle=False)
            assert np.array_equal(array[: tiny_card.latent_channels], data.read(np.array([row]), member="middle")[0])

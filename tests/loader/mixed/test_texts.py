"""Mixtures of sets with text layers: what is refused, and that texts stay with their samples, also after a resume."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.encode_text import main as encode_text
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset, MixedDataset
from pipeline.loader.mixed.torch_data import MixedSampleDataset
from pipeline.loader.torch_data import SampleDataset, StepSampler
from tests.support.captioned_set import Captions, add_unit, finish

OPTIONS: dict[str, Any] = {"captions": {"caption": 0.6, "meta_long_caption": 0.3, "": 0.1}, "text_dropout": 0.2}
Texts = list[tuple[str, str | None, float]]
"""Id, caption and a sum over the embedding of each sample."""


def write_set(folder: Path, name: str, count: int, first_key: int) -> Path:
    captions = [Captions(caption=f"{name} {n}", long=f"a long text on {name}, {n}") for n in range(count)]
    add_unit(folder / name, captions, first_key=first_key)
    finish(folder / name)
    embed(folder / name, "t5")
    return folder / name


def embed(output: Path, layer: str, *flags: str) -> None:
    arguments = ["--encoder", "demo", "--layer", layer, "--captions", "caption,meta_long_caption", "--local"]
    assert encode_text([str(output), *arguments, "--cpus", "1", *flags]) == 0


@pytest.fixture(scope="module")
def scenic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("mixed-texts"), "scenic", 8, 0)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("mixed-texts"), "faces", 6, 100)


@pytest.fixture
def mixed(scenic: Path, faces: Path) -> MixedDataset:
    return MixedDataset({LatentDataset(scenic, text="t5"): 0.5, LatentDataset(faces, text="t5"): 0.5}, seed=1)


def texts(batches: Iterable[Any]) -> Texts:
    return [
        (id, caption, rows.float().sum().item())
        for batch in batches
        for id, caption, rows in zip(batch["id"], batch["caption"], batch["text_embeddings"], strict=True)
    ]


def take(batches: Any, count: int) -> list[Any]:
    """The next batches, over as many epochs as they need."""
    seen: list[Any] = []
    while len(seen) < count:
        seen += itertools.islice(batches, count - len(seen))
    return seen


def test_sets_whose_texts_differ_are_refused(scenic: Path, faces: Path) -> None:
    with_text, without = LatentDataset(scenic, text="t5"), LatentDataset(faces)
    message = "differ in the text encoder of their layers: demo [0-9a-f]{16} and no text layer"
    with pytest.raises(ConfigError, match=message):
        MixedDataset({with_text: 1, without: 1}).batches(2)
    with pytest.raises(ConfigError, match=message):
        MixedSampleDataset(MixedDataset({with_text: 1, without: 1}))
    other = LatentDataset(faces, text="t5")
    assert other.text is not None
    other.text = dataclasses.replace(
        other.text, card=dataclasses.replace(other.text.card, encoder_sha256="1" * 64, family="other")
    )
    with pytest.raises(ConfigError, match=r"differ in the text encoder of their layers: demo .* and other"):
        MixedDataset({with_text: 1, other: 1}).batches(2)
    embed(faces, "t5-float32", "--dtype", "float32")
    with pytest.raises(ConfigError, match="differ in the type of the embeddings: bfloat16 and float32"):
        MixedDataset({with_text: 1, LatentDataset(faces, text="t5-float32"): 1}).batches(2)
    with pytest.raises(ConfigError, match=r"set '.*faces': the text layer 't5' has no embeddings of 'captions'"):
        MixedDataset({LatentDataset(faces, text="t5"): 1}).batches(2, captions={"captions": 1.0})


def test_texts_of_a_mixture_are_those_of_its_sets(mixed: MixedDataset) -> None:
    seen = take(mixed.batches(2, rank=0, world_size=1, **OPTIONS), 6)
    assert {Path(batch["dataset"]).name for batch in seen} == {"scenic", "faces"}
    for name, data in mixed.sets.items():
        alone = texts(data.batches(2, seed=1, rank=0, world_size=1, **OPTIONS))
        in_mixture = texts(batch for batch in seen if batch["dataset"] == name)
        assert in_mixture == alone[: len(in_mixture)]


def test_a_mixture_goes_on_with_the_same_texts_on_other_ranks(mixed: MixedDataset) -> None:
    whole = take(mixed.batches(2, rank=0, world_size=1, **OPTIONS), 10)
    for used in (1, 5, 8):
        batches = mixed.batches(2, rank=0, world_size=1, **OPTIONS)
        take(batches, used)
        state, rest = batches.state_dict(), []
        for rank in range(2):
            resumed = mixed.batches(1, rank=rank, world_size=2, **OPTIONS)
            resumed.load_state_dict(state)
            rest.append(take(resumed, 10 - used))
        assert texts(batch for step in zip(*rest, strict=True) for batch in step) == texts(whole[used:])


def test_a_step_sampler_resumes_with_the_same_texts(mixed: MixedDataset, scenic: Path) -> None:
    one = LatentDataset(scenic, text="t5")
    for data, dataset, seed in (
        (mixed, MixedSampleDataset(mixed, **OPTIONS), {}),
        (one, SampleDataset(one, **OPTIONS), {"seed": 0}),
    ):
        expected = texts(take(data.batches(2, rank=0, world_size=1, **OPTIONS, **seed), 4))
        sampler = StepSampler(data, 2, rank=0, world_size=1)
        first = [dataset.__getitems__(step) for step in itertools.islice(sampler, 2)]
        resumed = StepSampler(data, 2, rank=0, world_size=1)
        resumed.load_state_dict(sampler.state_after(2))
        then = [dataset.__getitems__(step) for step in itertools.islice(resumed, 2)]
        seen = [sample for step in (*first, *then) for sample in step]
        assert [(s["id"], s["caption"]) for s in seen] == [(id, caption) for id, caption, _ in expected]
        for sample, (_, _, total) in zip(seen, expected, strict=True):
            torch.testing.assert_close(sample["text_embeddings"].float().sum().item(), total)

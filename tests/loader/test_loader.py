"""Batches of an output that the real pipeline made: what they hold, their order, and exact resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import Batches, LatentDataset
from pipeline.loader.filters import WhereError
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import load_vae, read_card
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 samples of 32x56x17 and 6 of 32x32x17, from videos with a score each."""
    folder = tmp_path_factory.mktemp("loader")
    rows = []
    for i in range(9):
        wide = i < 7
        make_clip(folder / "videos" / f"{i}.mp4", 51, size=(64, 112) if wide else (64, 64), seed=i)
        rows.append({"path": f"videos/{i}.mp4", "caption": f"number {i}", "aesthetic": i / 2})
    pa.csv.write_csv(pa.Table.from_pylist(rows), folder / "m.csv")
    card = read_card(str(TINY))
    buckets = (Bucket(17, 32, 32), Bucket(17, 32, 56))
    recipe = Recipe(vae=card.sha256, buckets=buckets, micro_batch=(2, 2), windows="all", unit_clips=2)
    run = Run(output=str(folder / "out"), vae=str(TINY), sources=(str(folder / "m.csv"),), local=True, cpus=2)
    assert encode(recipe, run, card, say=lambda line: None).counts.samples == 27
    return folder / "out"


def ids(batches: Any) -> list[list[str]]:
    return [batch["id"] for batch in batches]


def test_a_batch_has_one_shape_and_what_training_needs(output: Path) -> None:
    shapes = set()
    for batch in LatentDataset(str(output)).batches(3):
        assert batch["latents"].dtype == torch.float32 and batch["latents"].shape[:3] == (3, 4, 5)
        assert batch["fps"].tolist() == [24.0] * 3 and batch["num_frames"].tolist() == [17] * 3
        (height,), (width,) = set(batch["height"].tolist()), set(batch["width"].tolist())
        assert batch["latents"].shape[3:] == (height // 8, width // 8)
        assert [f"number {key[7]}" for key in batch["key"]] == batch["caption"]
        shapes.add(batch["latents"].shape)
    assert len(shapes) == 2


def test_latents_are_normalized_once_or_raw(output: Path) -> None:
    data, vae = LatentDataset(str(output)), load_vae(TINY)
    for normal, raw in zip(data.batches(3), data.batches(3, normalized=False), strict=True):
        assert normal["id"] == raw["id"]
        assert torch.allclose(normal["latents"], vae.normalize(raw["latents"]), atol=1e-6)


def test_an_epoch_holds_every_sample_once_but_for_the_tails_it_reports(output: Path) -> None:
    batches = LatentDataset(str(output)).batches(4)
    seen = [name for batch in batches for name in batch["id"]]
    assert len(seen) == len(set(seen)) == 27 - batches.dropped
    assert batches.dropped == (21 % 4) + (6 % 4) and len(batches) == 6


def test_the_order_depends_on_seed_and_epoch_only(output: Path) -> None:
    data = LatentDataset(str(output))
    first, again, other = data.batches(3, seed=1), data.batches(3, seed=1), data.batches(3, seed=2)
    epoch = ids(first)
    assert ids(again) == epoch != ids(other)
    assert ids(first) != epoch, "the next epoch has another order"
    assert ids(again) != epoch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_duplicates_and_in_step(output: Path, world_size: int) -> None:
    data = LatentDataset(str(output))
    ranks = [list(data.batches(2, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = [name for rank in ranks for batch in rank for name in batch["id"]]
    assert len(seen) == len(set(seen))
    for step in zip(*ranks, strict=True):
        assert len({batch["latents"].shape for batch in step}) == 1


def test_state_resumes_exactly_at_every_step(output: Path) -> None:
    data = LatentDataset(str(output))
    whole = data.batches(3, seed=5)
    two_epochs = ids(whole) + ids(whole)
    for stop in range(len(two_epochs)):
        before, seen = data.batches(3, seed=5), []
        for name in _endless(before):
            if len(seen) == stop:
                break
            seen.append(name)
            state = before.state_dict()
        if not stop:
            state = data.batches(3, seed=5).state_dict()
        resumed = data.batches(3, seed=5)
        resumed.load_state_dict(state)
        assert state.keys() == {"version", "dataset_version", "seed", "epoch", "step", "schedule_hash"}
        rest = _endless(resumed)
        assert [next(rest) for _ in range(len(two_epochs) - stop)] == two_epochs[stop:]


def _endless(batches: Batches) -> Iterator[list[str]]:
    while True:
        yield from (batch["id"] for batch in batches)


def test_state_fits_another_world_size_at_the_same_global_batch(output: Path) -> None:
    data = LatentDataset(str(output))
    one = data.batches(6)
    iterator = iter(one)
    next(iterator)
    state = one.state_dict()
    halves = []
    for rank in range(2):
        half = data.batches(3, rank=rank, world_size=2)
        half.load_state_dict(state)
        halves.append(ids(half))
    assert [a + b for a, b in zip(*halves, strict=True)] == [batch["id"] for batch in iterator]


def test_state_of_another_schedule_is_refused_with_the_differences(output: Path) -> None:
    data = LatentDataset(str(output))
    state = data.batches(3).state_dict()
    filtered = LatentDataset(str(output), where="meta_aesthetic > 1")
    others = {
        r"in global_batch \(3 in the state, 4 here\)\.": data.batches(4),
        r"samples \(.*\), where \(all in the state, \w+ here\)": filtered.batches(3),
        r"seed \(0 in the state, 1 here\)": data.batches(3, seed=1),
        r"tail \(drop in the state, pad here\)": data.batches(3, tail="pad"),
        r"global_batch \(3 in the state, \w+ here\)\.": data.batches(tokens_per_batch=10_000),
        r"shapes \(bucket in the state, pad here\)": data.batches(3, shapes="pad"),
    }
    for message, other in others.items():
        with pytest.raises(ConfigError, match=message):
            other.load_state_dict(state)
    with pytest.raises(ConfigError, match="version 99"):
        data.batches(3).load_state_dict(state | {"version": 99})


def test_posterior_samples_depend_on_seed_epoch_and_sample_only(output: Path) -> None:
    data = LatentDataset(str(output))
    drawn = {name: x for b in data.batches(3, latent="sample") for name, x in zip(b["id"], b["latents"], strict=True)}
    again = {name: x for b in data.batches(2, latent="sample") for name, x in zip(b["id"], b["latents"], strict=True)}
    shared = drawn.keys() & again.keys()
    assert len(shared) > 20 and all(torch.equal(drawn[name], again[name]) for name in shared)
    means = {name: x for b in data.batches(3) for name, x in zip(b["id"], b["latents"], strict=True)}
    assert not any(torch.equal(drawn[name], means[name]) for name in shared)
    moments = data.read(np.arange(3), "sample")
    assert all(array.shape[0] == 8 for array in moments)


def test_filters_act_before_any_latent_is_read(output: Path) -> None:
    data = LatentDataset(str(output), where="meta_aesthetic >= 2 and latent_w == 7")
    assert len(data) == 9 and set(data.columns["caption"].to_pylist()) == {"number 4", "number 5", "number 6"}
    with pytest.raises(WhereError, match=r"no column 'aesthetic'; there are .*meta_aesthetic"):
        LatentDataset(str(output), where="aesthetic > 2")


def test_an_output_without_an_index_is_read_from_its_unit_metadata(output: Path, tmp_path: Path) -> None:
    running = tmp_path / "running"
    shutil.copytree(output, running)
    shutil.rmtree(running / "index")
    for path in sorted((running / "metadata").iterdir())[:2]:
        path.unlink()
    part, whole = LatentDataset(str(running)), LatentDataset(str(output))
    assert 0 < len(part) < len(whole)
    assert set(part.columns["id"].to_pylist()) < set(whole.columns["id"].to_pylist())
    assert sum(len(batch["id"]) for batch in part.batches(1)) == len(part)


def test_an_output_can_be_moved(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "moved")
    a, b = (next(iter(LatentDataset(str(p)).batches(3))) for p in (output, tmp_path / "moved"))
    assert a["id"] == b["id"] and torch.equal(a["latents"], b["latents"])


def test_an_empty_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no dataset\.json"):
        LatentDataset(str(tmp_path))


def test_a_newer_format_is_refused(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "newer")
    values = json.loads((tmp_path / "newer" / "dataset.json").read_text())
    (tmp_path / "newer" / "dataset.json").write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(IntegrityError, match="format version 99"):
        LatentDataset(str(tmp_path / "newer"))


def test_a_window_of_a_long_clip_is_what_encoding_its_frames_alone_gives(tmp_path: Path) -> None:
    """Open-Sora's chunks of 17: one clip of 102 frames beside two of 51, of the same video, on the real VAE."""
    make_clip(tmp_path / "videos" / "0.mp4", 102, seed=3)
    card = read_card(str(TINY))
    outputs = {}
    for num_frames in (102, 51):
        outputs[num_frames] = str(tmp_path / f"out{num_frames}")
        run = Run(output=outputs[num_frames], vae=str(TINY), sources=(str(tmp_path / "videos"),), local=True, cpus=2)
        recipe = Recipe(vae=card.sha256, buckets=(Bucket(num_frames, 32, 56),), micro_batch=(1,), windows="all")
        encode(recipe, run, card, say=lambda line: None)
    long, short = LatentDataset(outputs[102], frames=51), LatentDataset(outputs[51])
    assert len(LatentDataset(outputs[102])) == 1 and len(long) == len(short) == 2
    by_start = {
        start: x for b in long.batches(1) for start, x in zip(b["start_frame"].tolist(), b["latents"], strict=True)
    }
    for row, start in enumerate(short.columns["start_s"].to_pylist()):
        (alone,) = short.read(np.array([row]))
        frame = round(start * short.columns["fps"][row].as_py())
        (window,) = long.read(np.flatnonzero(np.array(long.columns["start_frame"]) == frame))
        assert alone.shape == window.shape == (4, 15, 4, 7)
        assert np.abs(alone.astype(np.float32) - window.astype(np.float32)).max() < 2e-3  # float16, other micro-batches
        normalized = short.normalize({"latents": torch.from_numpy(window.copy())[None].float(), "normalized": False})
        assert torch.allclose(by_start[frame], normalized["latents"][0], atol=1e-6)
    (first, second) = long.read(np.arange(2))
    assert np.abs(first.astype(np.float32) - second.astype(np.float32)).max() > 0.1, "the video moves"


def test_a_diffusion_transformer_learns_from_the_batches(output: Path) -> None:
    """A tiny Latte transformer, flow matching: and the loss falls."""
    from diffusers.models.transformers.latte_transformer_3d import LatteTransformer3DModel

    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=7,
        patch_size=1,
        caption_channels=8,
        video_length=5,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = LatentDataset(str(output), where="latent_w == 7").batches(7)
    losses = []
    for _ in range(15):
        for batch in batches:
            x = batch["latents"]
            t = torch.rand(len(x), 1, 1, 1, 1)
            noise = torch.randn_like(x)
            text = torch.zeros(len(x), 4, 8)
            velocity = model((1 - t) * x + t * noise, timestep=t.flatten() * 1000, encoder_hidden_states=text).sample
            loss = (velocity - (noise - x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert len(losses) == 45
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_paths_and_numpys_integers_are_arguments_too(output: Path) -> None:
    data = LatentDataset(output, where=pc.field("meta_aesthetic") > 1)
    assert len(data) == len(LatentDataset(str(output), where="meta_aesthetic > 1")) < 27
    batches = data.batches(np.int64(3), seed=np.int64(5), rank=np.int64(0), world_size=np.int64(1))  # type: ignore[arg-type]
    assert json.loads(json.dumps(batches.state_dict())) == data.batches(3, seed=5).state_dict()

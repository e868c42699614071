"""MiniMax-H3's VAE against the class of diffusers and the steps of its modular pipeline."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.recipe import Recipe, Run
from pipeline.report.round_trip import source_frames
from pipeline.run import encode
from stvae import conventions, load_vae
from stvae.geometry import Geometry, ShapeError
from stvae.vae import VAE
from tests.stvae.test_vaes import EXACT, in_the_models_range, random_clips
from tests.support import tiny_vaes
from tests.support.clips_maker import make_clip
from tests.support.oracle import assert_sound
from tests.support.paths import ROOT

NAME = "AutoencoderKLMiniMaxH3"
PAGE = (ROOT / "stvae" / "README.md").read_text()
STEPS = Path(diffusers.__file__).parent / "modular_pipelines" / "minimax_h3"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vaes.save(NAME, tmp_path_factory.mktemp("h3"))


@pytest.fixture(scope="module")
def vae(folder: Path) -> VAE:
    return load_vae(folder)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_vaes.make(NAME).requires_grad_(False)


def published_geometry() -> Geometry:
    return conventions.geometry(conventions.with_defaults({"_class_name": NAME}))


def step(name: str) -> Callable[..., Tensor]:
    """Return a function of the pipeline's encoding steps. Importing their module would need its text encoder."""
    functions = [n for n in ast.parse((STEPS / "encoders.py").read_text()).body if getattr(n, "name", "") == name]
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(functions, []), "encoders.py", "exec"), names)  # noqa: S102
    function: Callable[..., Tensor] = names[name]
    return function


@pytest.mark.parametrize("frames", [1, 5, 22, 39])
@pytest.mark.parametrize("size", [(32, 48), (64, 32)])
def test_moments_equal_those_of_the_class(vae: VAE, model: Any, frames: int, size: tuple[int, int]) -> None:
    pixels = random_clips((frames, *size))
    expected = model.encode(in_the_models_range(NAME, pixels)).latent_dist.parameters
    moments = vae.encode(pixels)
    assert moments.shape == (2, 8, *vae.latent_size((frames, *size)))
    torch.testing.assert_close(moments, expected, rtol=0, atol=EXACT)


def test_large_frames_are_encoded_in_tiles_and_no_other_way(vae: VAE, folder: Path, model: Any) -> None:
    pixels = random_clips((5, 288, 32), count=1)
    x = in_the_models_range(NAME, pixels)
    moments = vae.encode(pixels)
    torch.testing.assert_close(moments, model.encode(x).latent_dist.parameters, rtol=0, atol=EXACT)
    model.disable_tiling()
    untiled = model.encode(x).latent_dist.parameters
    model.enable_tiling()
    assert (moments - untiled).abs().max() > 10 * EXACT and not vae.can_tile


def test_clips_have_the_same_bits_alone_and_in_a_batch(vae: VAE) -> None:
    pixels = random_clips((22, 32, 48), count=3)
    together = vae.encode(pixels)
    assert all(torch.equal(together[n], vae.encode(pixels[n : n + 1])[0]) for n in range(3))


def test_a_part_that_begins_with_a_chunk_has_the_moments_of_its_own_frames(vae: VAE) -> None:
    pixels = random_clips((39, 32, 48), count=1)
    whole = vae.encode(pixels)
    for frames, latents in ((slice(0, 22), slice(0, 7)), (slice(17, 39), slice(5, 12)), (slice(17, 18), slice(5, 6))):
        torch.testing.assert_close(vae.encode(pixels[:, :, frames]), whole[:, :, latents], rtol=0, atol=EXACT)


def test_the_geometry_of_the_published_model() -> None:
    geometry = published_geometry()
    assert {n: geometry.latent_size((n, 768, 1344)) for n in (1, 5, 22, 124)} == {
        1: (1, 48, 84),
        5: (2, 48, 84),
        22: (7, 48, 84),
        124: (37, 48, 84),
    }
    assert geometry.covered_frames(22)[4:] == [(13, 17), (17, 18), (18, 22)] and geometry.covered_frames(1) == [(0, 1)]
    assert (geometry.chunk_frames, geometry.pad_frames(22), geometry.latents_per_chunk(22)) == (17, 3, 5)
    assert [geometry.largest_whole_length(n) for n in (0, 4, 5, 21, 22, 123)] == [0, 1, 5, 5, 22, 107]


@pytest.mark.parametrize(("frames", "nearest"), [(2, 1), (4, 5), (17, 22), (120, 124), (0, 1)])
def test_other_numbers_of_frames_are_refused_with_the_nearest(frames: int, nearest: int) -> None:
    with pytest.raises(
        ShapeError, match=rf"frames must be 1 or 17n\+5, got {frames}; the nearest that fits is {nearest}$"
    ):
        published_geometry().latent_size((frames, 768, 1344))


def test_the_encoder_computes_in_float32_whatever_the_type_is(folder: Path, vae: VAE) -> None:
    pixels = random_clips((22, 32, 48), count=1)
    theirs = diffusers.AutoencoderKLMiniMaxH3.from_pretrained(folder, torch_dtype=torch.bfloat16)
    for only in ("encoder", None):
        half = load_vae(folder, dtype="bfloat16", only=only)  # type: ignore[arg-type]
        assert torch.equal(half.encode(pixels), load_vae(folder, only=only).encode(pixels))  # type: ignore[arg-type]
    ours = {name: tensor.dtype for name, tensor in half.model.model.state_dict().items()}  # type: ignore[operator, union-attr]
    assert ours == {name: tensor.dtype for name, tensor in theirs.state_dict().items()}
    assert set(ours.values()) == {torch.float32, torch.bfloat16}
    latents = torch.randn(1, 4, 7, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = as_pixels(theirs.decode(latents).sample.float())
    assert (half.decode(latents, 22).float() - expected).abs().max() <= 1


def test_a_condition_is_a_sample_of_the_stored_moments(vae: VAE, model: Any) -> None:
    """README.md says what a trainer does with the moments of ``first`` and ``last``."""
    frame = random_clips((1, 48, 64), count=1)
    expected = step("encode_vae_condition")(model, frame, MEAN, STD)
    mean, logvar = vae.encode(frame).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(42))
    condition = vae.normalize((mean + torch.exp(0.5 * logvar) * noise).half().float())
    torch.testing.assert_close(condition, expected, rtol=1e-3, atol=1e-3)  # rounding to float16 may differ in a bit


def as_pixels(sample: Tensor) -> Tensor:
    """Turn decoded frames into pixels as MiniMaxH3VideoDecodeStep does."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD))
    return (sample * std + mean).clamp(0, 1).mul(255).round()


@pytest.mark.parametrize("frames", [22, 39])
def test_clips_are_decoded_as_the_pipeline_decodes_them(vae: VAE, model: Any, frames: int) -> None:
    normalized = torch.randn(2, 4, *vae.latent_size((frames, 32, 48)), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(model.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    expected = as_pixels(model.decode(normalized * std + mean).sample)
    decoded = vae.decode(vae.denormalize(normalized), frames)
    assert decoded.shape == (2, 3, frames, 32, 48) and (decoded.float() - expected).abs().max() <= 1


def test_short_clips_which_the_class_cannot_decode_are_decoded(vae: VAE, model: Any) -> None:
    latents = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises((RuntimeError, ValueError)):
        model.decode(latents)
    alone = as_pixels(model.decoder(model.post_quant_conv(latents)))[:, :, 3:]
    assert (vae.decode(latents, 5).float() - alone).abs().max() <= 1
    first = latents[:, :, :1]
    twice = as_pixels(model.decoder(model.post_quant_conv(first.expand(-1, -1, 2, -1, -1))))[:, :, 3:4]
    decoded = vae.decode(first, 1)
    assert decoded.shape == (1, 3, 1, 32, 48) and (decoded.float() - twice).abs().max() <= 1


def test_a_job_with_conditions_is_read_whole_and_in_windows(vae: VAE, folder: Path, tmp_path: Path) -> None:
    for seed in range(2):
        make_clip(tmp_path / "videos" / f"{seed}.mp4", 45, size=(48, 64), seed=seed)
    recipe = Recipe(
        vae=vae.card.sha256, buckets=(Bucket(39, 32, 48),), micro_batch=(2,), conditioning="first-last", dtype="float32"
    )
    run = Run(output=str(tmp_path / "out"), vae=str(folder), sources=(str(tmp_path / "videos"),), local=True, cpus=1)
    recipe.check_vae(vae.card)
    assert encode(recipe, run, vae.card, say=lambda line: None).counts.samples == 2
    rows = assert_sound(tmp_path / "out")
    assert {(row["latent_t"], row["pad_frames"], row["chunk_frames"], row["latents_per_chunk"]) for row in rows} == {
        (12, 3, 17, 5)
    }
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["vae"]["geometry"]["frames"]["or_one"] is True
    data = LatentDataset(str(tmp_path / "out"))
    (batch,) = data.batches(2, conditioning=True, shuffle=False)
    assert batch["latents"].shape == (2, 4, 12, 2, 3)
    torch.testing.assert_close(batch["first_latents"][:, :, 0], batch["latents"][:, :, 0], rtol=0, atol=EXACT)
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S) if "manual_seed(42)" in b]
    rows = np.array([1])
    names: dict[str, Any] = {"torch": torch, "data": data, "rows": rows, "vae": vae}
    exec(block, names)  # noqa: S102
    (frames,) = source_frames(run, data, [1])
    first = torch.from_numpy(frames[:1]).permute(3, 0, 1, 2)[None]
    expected = step("encode_vae_condition")(tiny_vaes.make(NAME).requires_grad_(False), first, MEAN, STD)
    torch.testing.assert_close(names["condition"], expected, rtol=1e-3, atol=1e-3)
    windows = LatentDataset(str(tmp_path / "out"), frames=22, frames_stride=17)
    assert len(windows) == 4
    parts = np.stack([windows.read(np.array([row]))[0] for row in range(2)])
    whole = data.read(np.array([0]))[0]
    assert np.array_equal(parts, np.stack([whole[:, :7], whole[:, 5:]]))
    with pytest.raises(ConfigError, match=r"frames must be 1 or 17n\+5, got 34; the nearest that fits is 39"):
        LatentDataset(str(tmp_path / "out"), frames=34)

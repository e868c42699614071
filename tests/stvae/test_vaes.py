"""Every diffusers VAE: its card against its moments, its moments against diffusers' own, and one job for each."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import diffusers
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import Card, conventions, load_vae, read_card
from stvae.autoencoder import mean_and_logvar
from stvae.card import UnknownVAE
from stvae.geometry import ShapeError
from stvae.probe import probe
from stvae.vae import VAE
from stvae.weights import WeightsError
from tests.support import tiny_vaes
from tests.support.oracle import assert_sound
from tests.support.painted import painted_decoders, write_video

NAMES = list(tiny_vaes.CONFIGS)
EXACT = 1e-4
"""Largest difference to moments of diffusers' own code. The memory layout differs, and so the order of additions."""


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vaes.save(name, tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def vae(folder: Path) -> VAE:
    return load_vae(folder, only="encoder")


def sizes(card: Card) -> list[tuple[int, int, int]]:
    """Return sizes (T, H, W) that fit, a few along every axis; fewer for Allegro, whose tiles are large."""
    geometry, few = card.geometry, card.class_name == "AutoencoderKLAllegro"
    frames, heights, widths = (
        [rule.start + rule.step * i for i in steps]
        for rule, steps in (
            (geometry.frames, (0, 1) if few else (0, 1, 2) if geometry.frames.or_one else (0, 1, 2, 4)),
            (geometry.height, (0,) if few else (1, 2)),
            (geometry.width, (1,) if few else (1, 3)),
        )
    )
    return list(itertools.product(frames, heights, widths))


def random_clips(size: tuple[int, int, int], seed: int = 0, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def own_moments(name: str, card: Card, pixels: torch.Tensor) -> torch.Tensor:
    """Encode with diffusers alone, one clip or picture at a time, as its users do."""
    model = tiny_vaes.make(name)
    if card.class_name == "AutoencoderKLAllegro":
        model.enable_tiling()
    if card.class_name == "AutoencoderVidTok":  # as the forward() of the class does before it encodes
        pixels = torch.cat([pixels[:, :, :1]] * 3 + [pixels], dim=2)
    x = in_the_models_range(card.class_name, pixels)
    if name in ("AutoencoderKLQwenImage21", "AutoencoderKLQwenImage layered"):
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # opaque, as RGB pictures are after convert("RGBA")
    pictures_have_time = name in ("AutoencoderKLQwenImage21", "AutoencoderKLHunyuanImageRefiner")
    clips = []
    for clip in x:
        if card.geometry.chunk_frames == 1:
            frames = [frame[None, :, None] if pictures_have_time else frame[None] for frame in clip.transpose(0, 1)]
            parts = [_joined(model.encode(frame)) for frame in frames]
            clips.append(torch.cat(parts, dim=2)[0] if pictures_have_time else torch.cat(parts).transpose(0, 1))
        else:
            clips.append(_joined(model.encode(clip[None]))[0])
    moments = torch.stack(clips)
    if card.class_name == "AutoencoderKLKVAEVideo":
        moments, logvar = moments.chunk(2, dim=1)
        assert not logvar.any(), "the class has a log-variance now, so its row can be an ordinary one"
    if card.class_name == "AutoencoderKLFlux2":
        moments = torch.nn.functional.pixel_unshuffle(moments.transpose(1, 2), 2).transpose(1, 2)
    return moments


def in_the_models_range(class_name: str, pixels: torch.Tensor) -> torch.Tensor:
    """Scale uint8 pixels as the pipeline of a class does."""
    if class_name == "AutoencoderKLMiniMaxH3":  # encode_vae_condition of modular_pipelines/minimax_h3
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (pixels.float().div(255.0) - mean) / std
    x = pixels.float() / 127.5 - 1
    if class_name == "Kandinsky6SRVAE":  # _encode of pipeline_kandinsky6_sr
        return (x + 1) * (127.5 / 128) - 1
    return x


def _joined(encoded: Any) -> torch.Tensor:
    return torch.cat([part for part in mean_and_logvar(encoded) if part is not None], dim=1)


@torch.inference_mode()
def test_the_card_agrees_with_the_moments(vae: VAE) -> None:
    card = vae.card
    for size in sizes(card):
        moments = vae.encode(random_clips(size, count=1))
        assert moments.shape == (1, card.stored_channels, *vae.latent_size(size)), size
        covered = card.geometry.covered_frames(size[0])
        assert len(covered) == moments.shape[2]
        assert [f for first, last in covered for f in range(first, last)] == list(range(size[0]))


@torch.inference_mode()
def test_moments_equal_diffusers_own(name: str, vae: VAE) -> None:
    pixels = random_clips(sizes(vae.card)[-1])
    expected = own_moments(name, vae.card, pixels)
    torch.testing.assert_close(vae.encode(pixels), expected, rtol=0, atol=EXACT)


def test_a_clips_moments_do_not_depend_on_its_neighbors(vae: VAE) -> None:
    size = sizes(vae.card)[-1]
    clip = random_clips(size, count=1)
    beside = [vae.encode(torch.cat([clip, random_clips(size, seed=seed, count=1)]))[0] for seed in (1, 2)]
    assert torch.equal(*beside)


def test_a_size_that_does_not_fit_is_refused_with_the_nearest(vae: VAE) -> None:
    geometry = vae.card.geometry
    frames, height, width = geometry.frames.start, geometry.height.start, geometry.width.start
    nearest = geometry.height.nearest(height + 1)
    with pytest.raises(ShapeError, match=rf"height must be .*, got {height + 1}; the nearest that fits is {nearest}"):
        vae.latent_size((frames, height + 1, width))
    if geometry.frames.step > 1:
        with pytest.raises(
            ShapeError, match=rf"frames must be .*, got {frames + 1}; the nearest that fits is {frames}"
        ):
            vae.latent_size((frames + 1, height, width))


def test_tiles_give_the_same_shape(vae: VAE) -> None:
    if vae.can_tile:
        size = (vae.card.geometry.frames.start, 288, 288)
        assert vae.encode(random_clips(size, count=1), tiled=True).shape[2:] == vae.latent_size(size)
    else:
        assert vae.card.class_name in (
            "AsymmetricAutoencoderKL",
            "AutoencoderKLTemporalDecoder",
            "AutoencoderKLAllegro",
            "AutoencoderKLMiniMaxH3",
            "AutoencoderKLHunyuanImage",
            "AutoencoderKLHunyuanImageRefiner",
            "Kandinsky6SRVAE",
        )


def test_the_card_survives_json(vae: VAE) -> None:
    assert Card.from_json(json.loads(json.dumps(vae.card.to_json()))) == vae.card


def test_decoding_gives_back_the_frames(name: str, folder: Path, vae: VAE) -> None:
    size = sizes(vae.card)[-1]
    latents = torch.randn(1, vae.card.latent_channels, *vae.latent_size(size))
    frames = load_vae(folder, only="decoder").decode(latents, size[0])
    assert frames.shape == (1, 3, *size) and frames.dtype == torch.uint8
    assert torch.equal(frames, load_vae(folder).decode(latents, size[0]))


@pytest.mark.parametrize(
    "name_in_table",
    [f"Autoencoder{n}" for n in ("KL", "Tiny", "DC", "KLMagvit", "KLHunyuanVideo15", "KLLTX2Video", "KLMochi")],
)
def test_probing_a_class_without_a_row_gives_the_facts_of_its_row(name_in_table: str, tmp_path: Path) -> None:
    card = read_card(str(tiny_vaes.save(name_in_table, tmp_path)))
    facts = probe(json.loads((tmp_path / "config.json").read_text()))
    geometry = dataclasses.asdict(card.geometry)
    assert facts["has_moments"] == card.has_moments
    assert {
        key: facts[key] for key in ("spatial_stride", "temporal_stride", "chunk_frames")
    }.items() <= geometry.items()
    assert facts["frames"].items() <= (geometry["frames"] | {"largest": None}).items()


def test_defaults_equal_those_of_the_classes() -> None:
    for class_name, convention in conventions.TABLE.items():
        parameters = inspect.signature(getattr(diffusers, class_name)).parameters
        for key, value in convention.defaults.items():
            default = parameters[key].default
            assert (list(default) if isinstance(default, tuple) else default) == value, f"{class_name}: {key}"


def test_a_class_that_diffusers_does_not_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLImaginary"}')
    with pytest.raises(UnknownVAE, match="AutoencoderKLImaginary, which has no row"):
        read_card(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(UnknownVAE, match="has no model AutoencoderKLImaginary; install one that does"):
        read_card(str(tmp_path), unlisted=True)


def test_cards_are_read_without_torch(tmp_path: Path) -> None:
    folders = [str(tiny_vaes.save(name, tmp_path / name)) for name in NAMES]
    code = (
        f"import sys; from stvae import read_card; [read_card(f) for f in {folders}]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_in_bfloat16_weights_are_read_exactly(tmp_path: Path) -> None:
    model = tiny_vaes.make("AutoencoderKLLTXVideo").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    card = read_card(str(tmp_path))
    assert card.shift == tuple(model.latents_mean.float().tolist())


def test_the_scale_of_cosmos_follows_its_scheduler_and_so_does_its_identity(tmp_path: Path) -> None:
    alone = read_card(str(tiny_vaes.save("AutoencoderKLCosmos", tmp_path / "vae")))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"sigma_data": 1.0}')
    within = read_card(str(tmp_path))  # the folder of a whole pipeline
    assert within.scale[0][0] == 2 * alone.scale[0][0] and within.sha256 != alone.sha256


def test_a_standard_name_decides_between_two_checkpoints(tmp_path: Path) -> None:
    tiny_vaes.save("AutoencoderKL", tmp_path)
    expected = read_card(str(tmp_path))
    standard = tmp_path / "diffusion_pytorch_model.safetensors"
    shutil.copy(standard, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert read_card(str(tmp_path)) == expected
    standard.rename(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="several checkpoints"):
        read_card(str(tmp_path))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_checkpoint_in_parts_is_read_through_its_index(tmp_path: Path, variant: str | None) -> None:
    model = tiny_vaes.make("AutoencoderKL")
    model.save_pretrained(tmp_path, max_shard_size="40kB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    pixels = random_clips((1, 16, 16))
    expected = _joined(model.encode(pixels[:, :, 0].float() / 127.5 - 1))
    assert torch.allclose(load_vae(tmp_path).encode(pixels)[:, :, 0], expected, atol=EXACT)


def test_full_precision_comes_before_a_variant_in_parts(tmp_path: Path) -> None:
    model = tiny_vaes.make("AutoencoderKL")
    model.save_pretrained(tmp_path)
    expected = read_card(str(tmp_path))
    model.half().save_pretrained(tmp_path, max_shard_size="40kB", variant="fp16")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and read_card(str(tmp_path)) == expected


def test_a_whole_pipeline_behind_a_url_is_its_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tiny_vaes.save("AutoencoderKLCosmos", tmp_path / "pipe" / "vae")
    (tmp_path / "pipe" / "scheduler").mkdir()
    (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").write_text('{"sigma_data": 1.0}')
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    for folder in ("transformer", "text_encoder"):
        (tmp_path / "pipe" / folder).mkdir()
        (tmp_path / "pipe" / folder / "large.safetensors").write_bytes(b"not wanted")
    for _ in range(2):
        assert read_card(f"file://{tmp_path}/pipe") == read_card(str(tmp_path / "pipe"))
    copies = list((tmp_path / "home" / ".cache" / "latentmill").iterdir())
    assert len(copies) == 1 and not list(copies[0].rglob("large.safetensors"))


def test_attention_tensors_may_have_their_old_names(tmp_path: Path) -> None:
    tiny_vaes.save("AutoencoderKL", tmp_path)
    pixels = random_clips((1, 16, 16))
    expected = load_vae(tmp_path).encode(pixels)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert any(".query." in key for key in tensors)
    save_file(tensors, path)
    assert torch.equal(load_vae(tmp_path).encode(pixels), expected)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        write_video(folder / f"{number}.mp4", number, num_frames=45)
    return folder


def test_a_dataset_is_encoded_and_read_back(name: str, vae: VAE, folder: Path, videos: Path, tmp_path: Path) -> None:
    """The videos are painted, because decoding is the same for all classes and takes longer than encoding."""
    card = vae.card
    num_frames, height, width = sizes(card)[-1]
    bucket = Bucket(num_frames, height, width)
    store: Literal["moments", "mean"] = "mean" if card.lacks_logvar else "moments"
    recipe = Recipe(vae=card.sha256, buckets=(bucket,), micro_batch=(2,), max_upscale=8.0, store=store)
    run = Run(output=str(tmp_path / "out"), vae=str(folder), sources=(str(videos),), local=True, cpus=2)
    with painted_decoders():
        summary = encode(recipe, run, card, say=lambda line: None)
    assert (summary.counts.samples, summary.exit_code) == (2, 0)
    rows = assert_sound(tmp_path / "out")
    assert {(row["latent_t"], row["latent_h"], row["latent_w"]) for row in rows} == {vae.latent_size(sizes(card)[-1])}
    data = LatentDataset(str(tmp_path / "out"))
    (batch,) = list(data.batches(2))
    (raw,) = list(data.batches(2, normalized=False))
    torch.testing.assert_close(vae.normalize(raw["latents"]), batch["latents"])
    with pytest.raises(ConfigError, match="already normalized"):
        data.normalize(batch)
    torch.testing.assert_close(data.normalize(raw)["latents"], batch["latents"])

"""Every autoencoder class of diffusers has a row in the table or a reason for which it is refused."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models import autoencoders

import stvae.card
from jobs.encode_dataset import main
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import conventions, load_vae, read_card
from stvae.card import UnknownVAE
from stvae.classes.convention import EIGHT_BITS, FROM_MINUS_ONE_TO_ONE, IMAGENET, PixelScale
from stvae.classes.pixels import to_model_range, to_uint8
from stvae.classes.refused import REFUSED
from tests.stvae.test_vaes import random_clips
from tests.support import tiny_vaes
from tests.support.clips_maker import make_clip
from tests.support.paths import ROOT


def classes_of_diffusers() -> set[str]:
    """Every model that ``diffusers.models.autoencoders`` exports, and every one there that is named like an autoencoder."""
    exported = {
        name
        for name, value in vars(autoencoders).items()
        if inspect.isclass(value) and issubclass(value, diffusers.ModelMixin)
    }
    named = set()
    for module in pkgutil.iter_modules(autoencoders.__path__):
        members = vars(importlib.import_module(f"{autoencoders.__name__}.{module.name}"))
        named |= {
            name
            for name, value in members.items()
            if inspect.isclass(value)
            and issubclass(value, diffusers.ModelMixin)
            and value.__module__.startswith(autoencoders.__name__)
            and re.search(r"VAE|Vae$|Autoencoder|VQModel", name)
        }
    return exported | named


def test_every_class_has_a_row_or_a_reason() -> None:
    found = classes_of_diffusers()
    assert len(found) > 35 and {"Kandinsky6SRVAE", "LongCatAudioDiTVae", "AutoencoderRAE"} <= found
    assert not conventions.TABLE.keys() & REFUSED.keys()
    assert found == conventions.TABLE.keys() | REFUSED.keys()


def test_every_row_has_a_tiny_model_and_a_line_in_the_page() -> None:
    assert conventions.TABLE.keys() == {name.split()[0] for name in tiny_vaes.CONFIGS}
    page = (ROOT / "stvae" / "README.md").read_text()
    for name in conventions.TABLE.keys() | REFUSED.keys():
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_is_refused_says_why_also_if_unlisted_ones_are_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    for unlisted in (False, True):
        with pytest.raises(UnknownVAE, match=rf"{name}, which is not supported: it \w+"):
            read_card(str(tmp_path), unlisted=unlisted)


@pytest.fixture
def unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a class whose row is taken away."""
    monkeypatch.delitem(conventions.TABLE, "AsymmetricAutoencoderKL")
    return tiny_vaes.save("AsymmetricAutoencoderKL", tmp_path / "vae")


def test_a_class_without_a_row_is_refused_with_the_flag_that_accepts_it(
    unlisted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--source",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--vae",
        str(unlisted),
        "--buckets",
        "16x16x1",
    ]
    assert main([*command, "--local"]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert "AsymmetricAutoencoderKL, which has no row" in last and "--unlisted-vae" in last
    with pytest.raises(UnknownVAE, match="unlisted=True"):
        load_vae(unlisted)


def test_an_unlisted_class_works_and_the_output_says_what_was_assumed(
    unlisted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = load_vae(unlisted, only="encoder", unlisted=True)
    pixels = random_clips((3, 16, 24))
    with torch.inference_mode():
        model = tiny_vaes.make("AsymmetricAutoencoderKL")
        expected = model.encode(pixels[0].transpose(0, 1).float() / 127.5 - 1).latent_dist.mean.transpose(0, 1)
    assert torch.allclose(vae.encode(pixels)[0, :4], expected, atol=1e-5) and vae.card.scale == (0.18215,) * 4
    assert vae.card.assumed == conventions.ASSUMED and "pixels are in [-1, 1]" in vae.card.assumed

    probed = vae.card.geometry, vae.card.has_moments
    monkeypatch.setattr(stvae.card, "_probe_class", lambda folder, class_name: probed)  # a second probe takes seconds
    make_clip(tmp_path / "videos" / "a.mp4", 5, size=(48, 64), seed=0)
    recipe = Recipe(vae=vae.card.sha256, buckets=(Bucket(1, 32, 48),), micro_batch=(2,))
    out = tmp_path / "out"
    run = Run(
        output=str(out), vae=str(unlisted), sources=(str(tmp_path / "videos"),), local=True, cpus=1, unlisted_vae=True
    )
    assert encode(recipe, run, vae.card, say=lambda line: None).counts.samples
    recorded = json.loads((out / "dataset.json").read_text())["vae"]
    assert recorded["assumed"] == list(conventions.ASSUMED)
    assert "pixels are in [-1, 1]" in (out / "report.html").read_text()
    assert type(vae.card).from_json(recorded) == vae.card


def test_cards_of_earlier_classes_are_recorded_as_before(tmp_path: Path) -> None:
    values = read_card(str(tiny_vaes.save("AutoencoderKL", tmp_path))).to_json()
    assert values.keys() == {
        "class_name", "sha256", "latent_channels", "has_moments", "geometry", "shift", "scale"
    }  # fmt: skip
    assert values["geometry"]["frames"].keys() == {"start", "step", "largest"}


def test_kvae_stores_means_only_and_is_never_sampled(tmp_path: Path) -> None:
    card = read_card(str(tiny_vaes.save("AutoencoderKLKVAEVideo", tmp_path)))
    assert not card.has_moments and card.lacks_logvar and card.to_json()["lacks_logvar"] is True
    recipe = Recipe(vae=card.sha256, buckets=(Bucket(5, 32, 48),), micro_batch=(2,), store="mean")
    recipe.check_vae(card)
    with pytest.raises(
        ConfigError, match="AutoencoderKLKVAEVideo has no true log-variance, so it cannot be sampled; give --store mean"
    ):
        Recipe(vae=card.sha256, buckets=(Bucket(5, 32, 48),), micro_batch=(2,)).check_vae(card)


@pytest.mark.parametrize("scale", [FROM_MINUS_ONE_TO_ONE, IMAGENET, EIGHT_BITS], ids=str)
def test_pixels_survive_every_range(scale: PixelScale) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 1, 256)
    assert torch.equal(to_uint8(to_model_range(pixels, scale), scale), pixels)


def test_kandinsky_6_decodes_as_its_pipeline(tmp_path: Path) -> None:
    vae = load_vae(tiny_vaes.save("Kandinsky6SRVAE", tmp_path), only="decoder")
    latents = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        video = tiny_vaes.make("Kandinsky6SRVAE").decode(latents).sample
    expected = (
        ((video + 1) * (128 / 127.5) - 1).clamp(-1, 1).add(1).mul(127.5).round()
    )  # decode_latents of its pipeline
    assert (vae.decode(latents, 5).float() - expected).abs().max() <= 1

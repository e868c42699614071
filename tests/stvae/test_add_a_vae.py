"""The steps under "Add a VAE" in stvae/README.md, followed with a toy class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from stvae import Card, conventions, load_vae, read_card
from stvae.classes.convention import Convention
from stvae.geometry import Geometry, ShapeError, multiples
from stvae.probe import probe
from tests.stvae import test_vaes as vae_checks
from tests.support import tiny_vaes

NAME = "AutoencoderKLToy"


class AutoencoderKLToy(ModelMixin, ConfigMixin):
    """One convolution each way. It takes an even number of frames, and decodes to [B,T,3,H,W]."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        spatial_compression_ratio: int = 4,
        temporal_compression_ratio: int = 2,
        scaling_factor: float = 0.5,
        shift_factor: float = 0.1,
    ) -> None:
        super().__init__()
        kernel = (temporal_compression_ratio, spatial_compression_ratio, spatial_compression_ratio)
        self.encoder = nn.Conv3d(3, 2 * latent_channels, kernel, stride=kernel)
        self.decoder = nn.ConvTranspose3d(latent_channels, 3, kernel, stride=kernel)

    def encode(self, x_BCTHW: Tensor) -> AutoencoderKLOutput:
        if x_BCTHW.ndim != 5 or x_BCTHW.shape[2] % self.config["temporal_compression_ratio"]:
            raise ValueError("not an even number of frames")
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self.encoder(x_BCTHW)))

    def decode(self, z_BCthw: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(z_BCthw).transpose(1, 2))


TINY_CONFIG: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.1}

ROW = Convention(
    spatial_stride=lambda config: int(config["spatial_compression_ratio"]),
    temporal_stride=lambda config: int(config["temporal_compression_ratio"]),
    frame_rule=lambda config, stride: multiples(stride),
    decodes_frames_first=True,
    defaults={"spatial_compression_ratio": 4, "temporal_compression_ratio": 2},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the toy class, with its row in the table (step 2) and its tiny configuration (step 4)."""
    monkeypatch.setattr(diffusers, NAME, AutoencoderKLToy, raising=False)
    monkeypatch.setitem(conventions.TABLE, NAME, ROW)
    monkeypatch.setitem(tiny_vaes.CONFIGS, NAME, TINY_CONFIG)
    return tiny_vaes.save(NAME, tmp_path / "toy")


def test_the_probe_finds_the_strides(folder: Path) -> None:
    """Step 1."""
    facts = probe(json.loads((folder / "config.json").read_text()))
    assert (facts["spatial_stride"], facts["temporal_stride"]) == (4, 2)
    assert facts["frames"] == {"start": 2, "step": 2} and facts["has_moments"]


def test_the_card_and_its_geometry_follow_from_the_row(folder: Path) -> None:
    card = read_card(str(folder))
    assert card == Card(
        class_name=NAME,
        sha256=card.sha256,
        latent_channels=4,
        has_moments=True,
        geometry=Geometry(
            spatial_stride=4, temporal_stride=2, frames=multiples(2), height=multiples(4), width=multiples(4)
        ),
        shift=(0.1,) * 4,
        scale=(0.5,) * 4,
    )
    assert card.geometry.latent_size((6, 16, 24)) == (3, 4, 6)
    with pytest.raises(ShapeError, match="frames must be a multiple of 2, got 7; the nearest that fits is 6"):
        card.geometry.latent_size((7, 16, 24))


def test_defaults_complete_an_older_configuration(folder: Path) -> None:
    expected = read_card(str(folder)).geometry
    config = json.loads((folder / "config.json").read_text())
    for key in ROW.defaults:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_card(str(folder)).geometry == expected


def test_clips_are_encoded_decoded_and_normalized(folder: Path) -> None:
    model = tiny_vaes.make(NAME)
    vae = load_vae(folder)
    pixels = vae_checks.random_clips((6, 16, 24))
    moments = vae.encode(pixels)
    mean = moments.chunk(2, dim=1)[0]
    decoded = vae.decode(mean, 6)
    with torch.inference_mode():
        torch.testing.assert_close(moments, model.encoder(pixels.float() / 127.5 - 1), rtol=0, atol=1e-4)
        expected = model.decoder(mean).add(1).mul(127.5).round().clamp(0, 255)
    assert decoded.shape == pixels.shape and (decoded.float() - expected).abs().max() <= 1
    torch.testing.assert_close(vae.normalize(mean), (mean - 0.1) * 0.5)
    torch.testing.assert_close(vae.denormalize(vae.normalize(mean)), mean)


def test_the_checks_of_every_vae_pass(folder: Path) -> None:
    """Step 4: the tests in test_vaes.py run for each name in ``tiny_vaes.CONFIGS``."""
    vae = load_vae(folder, only="encoder")
    vae_checks.test_the_card_agrees_with_the_moments(vae)
    vae_checks.test_moments_equal_diffusers_own(NAME, vae)
    vae_checks.test_a_clips_moments_do_not_depend_on_its_neighbors(vae)
    vae_checks.test_a_size_that_does_not_fit_is_refused_with_the_nearest(vae)
    vae_checks.test_the_card_survives_json(vae)
    vae_checks.test_decoding_gives_back_the_frames(NAME, folder, vae)

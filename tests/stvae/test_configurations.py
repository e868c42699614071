"""Configurations other than the published ones, against the classes of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from stvae import load_vae, read_card
from stvae.autoencoder import mean_and_logvar
from stvae.weights import WeightsError
from tests.stvae.test_vaes import EXACT, in_the_models_range, random_clips
from tests.support import tiny_vaes

H3 = "AutoencoderKLMiniMaxH3"
KVAE = "AutoencoderKLKVAEVideo"
WAN = "AutoencoderKLWan"
FOUR = {"z_dim": 4, "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}

WORKING: list[tuple[str, dict[str, Any], tuple[int, int, int], tuple[int, int, int]]] = [
    (H3, {"clip_length": 9, "token_drop": 1}, (14, 32, 48), (5, 2, 3)),
    (H3, {"token_drop": 0}, (34, 32, 48), (10, 2, 3)),
    (H3, {"spatial_padding_mode": "replicate"}, (5, 16, 16), (2, 1, 1)),
    (H3, {"clip_length": 16, "token_drop": 2}, (24, 32, 48), (6, 2, 3)),
    (
        H3,
        {
            "block_out_channels": (4, 8, 8, 8, 4),
            "spatial_downsample_factors": (2, 2, 2, 1, 1),
            "temporal_downsample_factors": (2, 2, 2, 1, 1),
            "layers_per_block": 2,
            "latent_channels": 6,
            "latents_mean": (0.1,) * 6,
            "latents_std": (2.0,) * 6,
            "token_drop": 1,
        },
        (26, 16, 24),
        (5, 2, 3),
    ),
    (KVAE, {"temporal_compress_times": 2}, (19, 16, 24), (10, 2, 3)),
    (KVAE, {"temporal_compress_times": 8, "ch_mult": (1, 2, 1, 1)}, (25, 16, 24), (4, 2, 3)),
    (KVAE, {"temporal_compress_times": 4, "ch_mult": (1, 2)}, (19, 16, 24), (10, 8, 12)),
    (KVAE, {"temporal_compress_times": 1, "num_res_blocks": 2, "z_channels": 6}, (18, 16, 24), (18, 2, 3)),
    (KVAE, {}, (21, 16, 24), (6, 2, 3)),
    (KVAE, {}, (37, 16, 24), (10, 2, 3)),
    (WAN, FOUR | {"dim_mult": [1, 2], "temperal_downsample": [True]}, (9, 16, 24), (5, 8, 12)),
    (WAN, FOUR | {"dim_mult": [1, 2], "temperal_downsample": [False]}, (5, 16, 24), (5, 8, 12)),
    (
        WAN,
        FOUR
        | {
            "dim_mult": [1, 2, 2],
            "temperal_downsample": [True, True],
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
        },
        (9, 32, 48),
        (3, 4, 6),
    ),
    (WAN, FOUR | {"is_residual": True, "decoder_base_dim": 8}, (5, 32, 48), (2, 4, 6)),
    (WAN, FOUR | {"patch_size": 4, "in_channels": 48, "out_channels": 48}, (5, 32, 64), (2, 1, 2)),
    ("AutoencoderKLKVAE", {"ch_mult": (1, 2), "z_channels": 6}, (2, 16, 24), (2, 8, 12)),
    (
        "AutoencoderKLQwenImage21",
        FOUR | {"dim_mult": [1, 1], "temperal_downsample": [True], "in_channels": 3, "out_channels": 3},
        (2, 16, 24),
        (2, 8, 12),
    ),
    ("Kandinsky6SRVAE", {"temporal_compression_start_level": 3}, (9, 32, 48), (5, 2, 3)),
    (
        "Kandinsky6SRVAE",
        {"temporal_compression_ratio": 8, "temporal_compression_start_level": 0},
        (9, 32, 48),
        (2, 2, 3),
    ),
]


def save(name: str, changes: dict[str, Any], folder: Path) -> Any:
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**(tiny_vaes.CONFIGS[name] | changes)).eval().requires_grad_(False)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("name", "changes", "size", "latent_size"), WORKING, ids=lambda value: str(value)[:60])
def test_other_configurations_work_as_their_class(
    name: str, changes: dict[str, Any], size: tuple[int, int, int], latent_size: tuple[int, int, int], tmp_path: Path
) -> None:
    model = save(name, changes, tmp_path)
    vae = load_vae(tmp_path)
    assert vae.latent_size(size) == latent_size
    pixels = random_clips(size, count=1)
    x = in_the_models_range(name, pixels)
    if name == "AutoencoderKLKVAE":
        expected = model.encode(x[0].transpose(0, 1)).latent_dist.parameters.transpose(0, 1)[None]
    elif name == "AutoencoderKLQwenImage21":
        frames = [model.encode(x[:, :, n : n + 1]).latent_dist.parameters for n in range(size[0])]
        expected = torch.cat(frames, dim=2)
    else:
        mean, logvar = mean_and_logvar(model.encode(x))
        expected = mean if name == KVAE or logvar is None else torch.cat([mean, logvar], dim=1)
    moments = vae.encode(pixels)
    torch.testing.assert_close(moments, expected, rtol=0, atol=EXACT)
    mean = moments[:, : vae.card.latent_channels]
    decoded = vae.decode(mean, size[0])
    assert decoded.shape == (1, 3, *size) and vae.normalize(mean).isfinite().all()


@pytest.mark.parametrize("frames", [1, 5, 17, 25, 33])
def test_kvae_decodes_as_its_class_where_that_works(frames: int, tmp_path: Path) -> None:
    model = save(KVAE, {}, tmp_path)
    vae = load_vae(tmp_path, only="decoder")
    latents = torch.randn(1, 4, *vae.latent_size((frames, 16, 24)), generator=torch.Generator().manual_seed(0))
    expected = model.decode(latents).sample.add(1).mul(127.5).round().clamp(0, 255)
    assert (vae.decode(latents, frames).float() - expected).abs().max() <= 1


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    (H3, {"token_drop": 5}, "token_drop is 5; expected 0 to 4 for chunks of 17 frames"),
    (
        H3,
        {"spatial_downsample_factors": (2, 2, 2, 1), "temporal_downsample_factors": (1, 2, 1, 2)},
        "a level of it shortens time and keeps the size of frames",
    ),
    (
        H3,
        {"latents_mean": (0.0,) * 8, "latents_std": (1.0,) * 8},
        "8 latents_mean and 8 latents_std do not fit 4 channels",
    ),
    (WAN, {"z_dim": 8}, "16 latents_mean and 16 latents_std do not fit 8 channels"),
    (WAN, {"temperal_downsample": [True, True, True]}, "makes 1 latent frame of 8, but the class encodes 4 frames"),
    (WAN, {"temperal_downsample": [True] * 4}, "has 4 values; dim_mult has 4, so expected 3"),
    (WAN, {"latents_mean": None}, "it lacks latents_mean and latents_std"),
    ("AutoencoderKLKVAE", {"double_z": False}, "the class takes half of the latent for its log-variance"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BROKEN, ids=lambda value: str(value)[:60])
def test_configurations_with_which_the_class_does_not_work_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(name, changes, tmp_path)
    with pytest.raises(WeightsError, match=message):
        read_card(str(tmp_path))

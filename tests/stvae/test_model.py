"""The Open-Sora 1.2 VAE against the outputs of Open-Sora's own code on tiny random weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stvae import load_vae
from stvae.model import SpatioTemporalVAE
from stvae.vae import VAE, build_open_sora
from tests.support.golden import GOLDEN, TINY

LENGTHS = [1, 2, 4, 5, 16, 17, 18, 34, 40]
TOLERANCE = 1e-4
CASES = load_file(GOLDEN / "opensora-v12-tiny-cases.safetensors")

PUBLISHED_CONFIG = {
    "model_type": "VideoAutoencoderPipeline",
    "vae_2d": {
        "type": "VideoAutoencoderKL",
        "from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers",
        "subfolder": "vae",
        "micro_batch_size": 4,
        "local_files_only": False,
    },
    "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None},
    "micro_frame_size": 17,
    "shift": [-0.10, 0.34, 0.27, 0.98],
    "scale": [3.85, 2.32, 2.33, 3.06],
}
"""A configuration that names types without sizes, like that of the published checkpoint."""


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load_vae(TINY)


def pixels(num_frames: int) -> Tensor:
    return CASES[f"T{num_frames}.pixels_u8"]


def assert_close(result: Tensor, reference: Tensor) -> None:
    assert result.shape == reference.shape
    assert (result - reference).abs().max() <= TOLERANCE


@pytest.mark.parametrize("num_frames", LENGTHS)
@torch.inference_mode()
def test_every_stage_equals_the_reference(vae: VAE, num_frames: int) -> None:
    x = pixels(num_frames).float() / 127.5 - 1
    assert_close(vae.model.spatial_vae.encode(x), CASES[f"T{num_frames}.spatial_latents"])
    moments = vae.encode(pixels(num_frames))
    assert_close(moments, CASES[f"T{num_frames}.moments"])
    mean = moments.chunk(2, dim=1)[0]
    assert_close(vae.normalize(mean), CASES[f"T{num_frames}.latents"])
    assert_close(vae.model.decode(mean, num_frames), CASES[f"T{num_frames}.reconstruction"])


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_decoded_pixels_equal_the_reference_within_one_gray_level(vae: VAE, num_frames: int) -> None:
    decoded = vae.decode(vae.denormalize(CASES[f"T{num_frames}.latents"]), num_frames)
    reference = (CASES[f"T{num_frames}.reconstruction"].add(1) * 127.5).round().clamp(0, 255)
    assert (decoded.float() - reference).abs().max() <= 1


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_latent_size_equals_the_size_of_the_moments(vae: VAE, num_frames: int) -> None:
    assert vae.encode(pixels(num_frames)).shape[2:] == vae.latent_size((num_frames, 24, 40))


def test_the_full_size_model_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = build_open_sora(PUBLISHED_CONFIG)
    expected = json.loads((GOLDEN / "opensora-v12-full-shapes.json").read_text())["state_dict"]
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == expected


def test_chunks_are_independent(vae: VAE) -> None:
    x = pixels(40).clone()
    before = vae.encode(x)
    x[:, :, 17:34] = 255 - x[:, :, 17:34]
    after = vae.encode(x)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert torch.equal(before[:, :, 10:], after[:, :, 10:])
    assert not torch.equal(before[:, :, 5:10], after[:, :, 5:10])


def test_a_clip_is_encoded_the_same_beside_other_clips(vae: VAE) -> None:
    x = pixels(40)
    beside = vae.encode(torch.cat([255 - x, x]))[1:]
    assert (beside - vae.encode(x)).abs().max() <= 1e-5


@torch.inference_mode()
def test_later_frames_never_reach_earlier_latents_through_the_convolutions() -> None:
    """Group norm is replaced here, because its statistics span the whole chunk (see the next test)."""
    model = load_vae(TINY).model
    _replace_group_norms(model.temporal_vae)
    z = CASES["T17.spatial_latents"].clone()
    before = model.temporal_vae.encode(z)
    for first_changed in range(17):
        changed = z.clone()
        changed[:, :, first_changed:] += 1
        after = model.temporal_vae.encode(changed)
        untouched = (first_changed + 3) // 4  # 3 zero frames come first, and 4 frames make a latent frame
        assert torch.equal(before[:, :, :untouched], after[:, :, :untouched])
        assert not torch.equal(before[:, :, untouched:], after[:, :, untouched:])


@torch.inference_mode()
def test_as_in_the_reference_group_norm_lets_later_frames_shift_earlier_latents_of_a_chunk(vae: VAE) -> None:
    """Open-Sora 1.2 normalizes over the frames of a chunk too, so its latents are causal only between chunks."""
    z = CASES["T17.spatial_latents"].clone()
    before = vae.model.temporal_vae.encode(z)
    z[:, :, 16] += 1
    assert not torch.equal(before[:, :, 0], vae.model.temporal_vae.encode(z)[:, :, 0])


def _replace_group_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        else:
            _replace_group_norms(child)


def test_an_encoder_alone_gives_the_same_moments_and_has_no_decoder(vae: VAE) -> None:
    encoder: SpatioTemporalVAE = load_vae(TINY, only="encoder").model
    assert encoder.temporal_vae.decoder is None and encoder.spatial_vae.module.decoder is None
    assert torch.equal(VAE(vae.card, encoder).encode(pixels(18)), vae.encode(pixels(18)))
    decoder = load_vae(TINY, only="decoder")
    latents = vae.encode(pixels(18))[:, :4]
    assert torch.equal(decoder.decode(latents, 18), vae.decode(latents, 18))

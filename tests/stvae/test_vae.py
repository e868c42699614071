"""Loading checkpoints, and the VAE class on the tiny Open-Sora checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stvae import Card, load_vae, read_card
from stvae.card import UnknownVAE
from stvae.geometry import ShapeError
from stvae.weights import WeightsError
from tests.support import tiny_vaes
from tests.support.golden import TINY


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_missing_and_unexpected_keys_are_fatal_and_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["temporal_vae.extra.weight"] = tensors.pop("temporal_vae.quant_conv.conv.bias")
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(WeightsError) as failure:
        load_vae(checkpoint)
    assert "1 missing: temporal_vae.quant_conv.conv.bias" in str(failure.value)
    assert "1 unexpected: temporal_vae.extra.weight" in str(failure.value)


def test_a_missing_decoder_key_is_fatal_even_if_only_the_encoder_is_loaded(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["temporal_vae.decoder.norm1.bias"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: temporal_vae\.decoder\.norm1\.bias"):
        load_vae(checkpoint, only="encoder")


def test_a_tensor_of_another_shape_is_fatal_with_both_shapes(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["temporal_vae.quant_conv.conv.bias"] = torch.zeros(3)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(WeightsError, match=r"quant_conv\.conv\.bias \(got \(3,\), expected \(8,\)\)"):
        load_vae(checkpoint)


def test_the_fingerprint_follows_weights_and_configuration(checkpoint: Path) -> None:
    before = read_card(str(checkpoint)).sha256
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["temporal_vae.quant_conv.conv.bias"][0] += 1
    save_file(tensors, checkpoint / "model.safetensors")
    other_weights = read_card(str(checkpoint)).sha256
    change_config(checkpoint, cal_loss=True)
    assert len({before, other_weights, read_card(str(checkpoint)).sha256}) == 3


def test_an_unknown_class_is_named(checkpoint: Path) -> None:
    change_config(checkpoint, model_type=None, _class_name="AutoencoderUnknown")
    with pytest.raises(UnknownVAE, match="AutoencoderUnknown"):
        read_card(str(checkpoint))


def test_a_folder_without_a_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected a folder with config\.json"):
        load_vae(tmp_path)


def test_a_checkpoint_loads_from_a_url(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"file://{checkpoint}"
    first = read_card(url).sha256
    change_config(checkpoint, cal_loss=True)
    assert first == read_card(str(TINY)).sha256
    assert read_card(url).sha256 != first, "a changed remote checkpoint must not come from the cache"


def test_a_card_survives_json() -> None:
    card = read_card(str(TINY))
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_reading_a_card_imports_no_torch() -> None:
    code = f"import sys; from stvae import read_card; read_card({str(TINY)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_normalizing_and_back_changes_nothing() -> None:
    vae = load_vae(TINY)
    raw = torch.randn(2, 4, 5, 3, 6)
    assert torch.allclose(vae.denormalize(vae.normalize(raw)), raw, atol=1e-5)


def test_pixels_of_another_type_or_shape_are_refused() -> None:
    vae = load_vae(TINY)
    with pytest.raises(ShapeError, match="uint8"):
        vae.encode(torch.zeros(1, 3, 17, 32, 32))
    with pytest.raises(ShapeError, match="nearest that fits is 32"):
        vae.encode(torch.zeros(1, 3, 17, 30, 32, dtype=torch.uint8))


def test_a_sampled_spatial_posterior_depends_on_the_clips_seed_only() -> None:
    vae = load_vae(TINY)
    x = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    both = vae.encode(x, noise_seeds=[7, 8])
    assert torch.allclose(vae.encode(x[1:], noise_seeds=[8]), both[1:], atol=1e-5)
    assert not torch.allclose(vae.encode(x[1:], noise_seeds=[9]), both[1:], atol=1e-2)
    assert not torch.allclose(vae.encode(x), both, atol=1e-2)


@pytest.mark.parametrize(("folder", "encoders"), [("TINY", 2), ("AutoencoderTiny", 1)])
def test_only_encoders_are_compiled(
    folder: str, encoders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(type(module).__name__))
    load_vae(TINY if folder == "TINY" else tiny_vaes.save(folder, tmp_path), compiled=True)
    assert len(compiled) == encoders and all("Encoder" in name for name in compiled)


def test_a_compiled_model_has_no_numpy_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails on the NumPy bool that HunyuanVideo 1.5's blocks have."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)
    folder = tiny_vaes.save("AutoencoderKLHunyuanVideo15", tmp_path)
    plain, compiled = (load_vae(folder, only="encoder", compiled=on) for on in (False, True))
    assert _numpy_numbers(plain.model) and not _numpy_numbers(compiled.model)


def _numpy_numbers(model: torch.nn.Module) -> list[str]:
    return [name for module in model.modules() for name, value in vars(module).items() if isinstance(value, np.generic)]

"""Which family a folder belongs to, its card without weights, and folders that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import ConfigError
from pipeline.text.encoder import EncoderOptions
from pipeline.text.encoders.opening import open_renderer
from pipeline.text.encoders.renderer import padded_lengths, quoted_texts
from pipeline.text.encoders.table import FAMILIES
from stvae.weights import WeightsError
from tests.support.paths import ROOT

SIZES = {"hidden_size": 8, "num_hidden_layers": 60}


def make_folder(root: Path, models: dict[str, str], index: dict[str, Any] | None = None) -> str:
    """A folder with a configuration, one tensor and a tokenizer's file for each model type, by the folder's name."""
    for name, model_type in models.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "text_config": SIZES}))
        save_file({"x": np.zeros(2, np.float32)}, folder / "model.safetensors")
        tokenizer = root / name.replace("text_encoder", "tokenizer")
        tokenizer.mkdir(exist_ok=True)
        (tokenizer / "tokenizer_config.json").write_text("{}")
    if index is not None:
        (root / "model_index.json").write_text(json.dumps(index))
    return str(root)


@pytest.mark.parametrize(
    ("models", "index", "family"),
    [
        ({".": "umt5"}, None, "wan"),
        ({"text_encoder": "umt5"}, {"_class_name": "SkyReelsV2Pipeline"}, "wan"),
        ({"text_encoder": "t5"}, {"_class_name": "CogVideoXImageToVideoPipeline"}, "cogvideox"),
        ({"text_encoder": "t5"}, {"_class_name": "LTXConditionPipeline"}, "ltx-video-0.9.5"),
        ({"text_encoder": "llama", "text_encoder_2": "clip_text_model"}, None, "hunyuan-video"),
        ({"text_encoder": "qwen2_5_vl_text", "text_encoder_2": "t5"}, None, "hunyuan-video-1.5"),
        ({"text_encoder": "qwen2_5_vl", "text_encoder_2": "clip_text_model"}, None, "kandinsky-5"),
        ({"google/t5-v1_1-xxl": "t5", "openai/clip-vit-large-patch14": "clip"}, None, "open-sora-2"),
        ({".": "qwen3_vl"}, None, "minimax-h3"),
        ({".": "clip"}, None, "clip"),
    ],
)
def test_the_files_choose_the_family(
    models: dict[str, str], index: dict[str, Any] | None, family: str, tmp_path: Path
) -> None:
    card = open_renderer(make_folder(tmp_path, models, index), EncoderOptions()).card
    assert card.family == family and card.arrays[0].width == 8


@pytest.mark.parametrize(
    ("models", "index", "options", "message"),
    [
        ({}, None, {}, "no family fits the folder .*, which has no model of transformers"),
        ({".": "bert"}, None, {}, "which has bert"),
        ({".": "t5"}, None, {}, "several families; give --family, one of open-sora-1.2, cogvideox, mochi"),
        ({"text_encoder": "t5"}, {"_class_name": "FluxPipeline"}, {}, "is a FluxPipeline, which no family has"),
        ({".": "t5"}, None, {"family": "sora"}, "no family 'sora' of text encoders; there are open-sora-1.2"),
        (
            {".": "llama"},
            None,
            {"family": "hunyuan-video"},
            "needs an encoder of type clip or clip_text_model for 'pooled'",
        ),
        ({".": "umt5"}, None, {"connector": "/x"}, "wan has no connector"),
        ({".": "gemma3"}, None, {"connector": "/x"}, "no connector at '/x'"),
        ({".": "gemma3"}, None, {}, "ltx-2 take .* MB for each caption"),
        ({".": "umt5"}, None, {"max_tokens": 0}, "--max-tokens must be positive, got 0"),
        ({".": "clip"}, None, {"max_tokens": 100}, "--max-tokens must be positive and at most 77, got 100"),
    ],
)
def test_folders_and_options_that_do_not_fit_are_refused(
    models: dict[str, str], index: dict[str, Any] | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_renderer(make_folder(tmp_path, models, index), EncoderOptions(**options))


def test_a_folder_must_exist_and_have_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text encoder at"):
        open_renderer(str(tmp_path / "nothing"), EncoderOptions())
    with pytest.raises(ConfigError, match="for a model on the Hugging Face Hub give 'hf://acme/umt5'"):
        open_renderer("acme/umt5", EncoderOptions())
    make_folder(tmp_path, {".": "umt5"})
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer in"):
        open_renderer(str(tmp_path), EncoderOptions())


@pytest.mark.parametrize(
    "config", ["", "[1]", '{"model_type": "umt5"}', '{"model_type": "umt5", "vocab_size": 99999999999}']
)
def test_broken_configurations_are_refused(config: str, tmp_path: Path) -> None:
    make_folder(tmp_path, {".": "umt5"})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_renderer(str(tmp_path), EncoderOptions())


def test_a_model_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    make_folder(tmp_path / "models--google--umt5-xxl" / "snapshots" / ("0" * 40), {".": "umt5"})
    assert open_renderer(str(tmp_path / "models--google--umt5-xxl"), EncoderOptions()).card.family == "wan"


def test_the_card_changes_with_weights_tokenizer_and_options(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {".": "umt5"})
    cards = [open_renderer(folder, EncoderOptions()).card]
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    cards.append(open_renderer(folder, EncoderOptions()).card)
    (tmp_path / "tokenizer_config.json").write_text('{"x": 1}')
    cards.append(open_renderer(folder, EncoderOptions()).card)
    cards.append(open_renderer(folder, EncoderOptions(max_tokens=226)).card)
    assert len({card.sha256 for card in cards}) == 4
    assert cards[0].encoder_sha256 != cards[1].encoder_sha256 == cards[2].encoder_sha256
    assert cards[1].tokenizer_sha256 != cards[2].tokenizer_sha256


def test_a_renderer_imports_no_torch(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {".": "umt5"})
    code = (
        "import sys; from pipeline.text.encoder import EncoderOptions; "
        "from pipeline.text.encoders.opening import open_renderer; "
        f"print(open_renderer({folder!r}, EncoderOptions()).render(' a  cat ')); "
        "print([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[:2] == ["('a cat',)", "[]"]


def test_a_folder_behind_a_url_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the folders for text are, and not the weights of other models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_folder(tmp_path / "pipe", {"text_encoder": "umt5"}, {"_class_name": "WanPipeline"})
    make_folder(tmp_path / "pipe", {"transformer": "wan"})
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "pipe" / "whole-model.safetensors")
    card = open_renderer(f"file://{tmp_path}/pipe", EncoderOptions()).card
    assert card == open_renderer(str(tmp_path / "pipe"), EncoderOptions()).card
    copied = {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert copied == {"config.json", "model.safetensors", "tokenizer_config.json", "model_index.json"}
    assert not list((tmp_path / "home").rglob("transformer"))


def test_captions_that_are_no_text_become_text(tmp_path: Path) -> None:
    renderer = open_renderer(make_folder(tmp_path, {".": "umt5"}), EncoderOptions())
    assert renderer.render("a \ud83d cat \U0001f600") == ("a ? cat \U0001f600",)


def test_lengths_rise_to_the_longest() -> None:
    assert padded_lengths(128, 0) == (32, 64, 96, 128)
    assert padded_lengths(77, 95) == (127, 159, 172)
    for max_tokens in (1, 32, 226, 300, 512, 1000, 8192):
        lengths = padded_lengths(max_tokens, 0)
        assert lengths[-1] == max_tokens and list(lengths) == sorted(set(lengths)) and len(lengths) < 80


@pytest.mark.parametrize(
    ("caption", "glyphs"),
    [
        ("nothing", ""),
        ('a "b" c', 'Text "b". '),
        ('“b” and "c" and “b”', 'Text "b". Text "c". '),
        ('""', 'Text "". '),
        ('an open "quote', ""),
    ],
)
def test_quoted_texts(caption: str, glyphs: str) -> None:
    assert quoted_texts(caption) == glyphs


def test_folders_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {".": "umt5"})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    assert open_renderer(folder, EncoderOptions()).card.family == "wan"


def test_every_family_has_its_own_arrays_and_pipelines() -> None:
    pipelines = [pipeline for family in FAMILIES.values() for pipeline in family.pipelines]
    assert len(pipelines) == len(set(pipelines))
    for family in FAMILIES.values():
        assert len({branch.array for branch in family.branches}) == len(family.branches)

"""Checkpoints as they are published and as they get damaged: which weights are read, and what is refused."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.text.encoder import EncoderOptions
from pipeline.text.encoders.models import MODEL_CLASSES
from pipeline.text.encoders.opening import load_text_encoder
from pipeline.text.encoders.table import FAMILIES
from stvae.weights import WeightsError
from tests.text.encoders import makers
from tests.text.encoders.comparison import CAPTIONS, embed, opened

Tensors = dict[str, torch.Tensor]


def save_flat(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write model and tokenizer into one folder, as the repository of a text encoder has them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def main_array(folder: Path, family: str, caption: str = CAPTIONS[0]) -> np.ndarray[Any, Any]:
    """The first array of a caption."""
    encoder = opened(folder, family, large=True)
    return embed(encoder, [caption])[0][encoder.card.arrays[0].name].values


@pytest.fixture
def umt5(tmp_path: Path) -> Path:
    return save_flat(tmp_path / "umt5", makers.model("UMT5EncoderModel", makers.umt5_config()), makers.t5_tokenizer())


def test_an_encoder_is_read_out_of_a_whole_model(tmp_path: Path) -> None:
    """Decoders, heads and pictures are left where they are."""
    tokenizer = makers.t5_tokenizer()
    whole = makers.model("T5ForConditionalGeneration", makers.t5_config())
    encoder = transformers.T5EncoderModel(makers.t5_config()).eval()
    encoder.load_state_dict(
        {key: value for key, value in whole.state_dict().items() if not key.startswith(("dec", "lm"))}
    )
    expected = main_array(save_flat(tmp_path / "alone", encoder, tokenizer), "mochi")
    assert np.array_equal(main_array(save_flat(tmp_path / "whole", whole, tokenizer), "mochi"), expected)
    clip = transformers.CLIPConfig(
        text_config=makers.clip_config().to_dict(),
        vision_config={**makers.LAYERS, "image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    both = makers.model("CLIPModel", clip)
    expected = main_array(save_flat(tmp_path / "text", both.text_model, makers.clip_tokenizer()), "clip")
    assert np.array_equal(main_array(save_flat(tmp_path / "both", both, makers.clip_tokenizer()), "clip"), expected)


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
def test_names_of_weights_of_all_versions_are_understood(prefix: str, tmp_path: Path) -> None:
    model = makers.model("Qwen2_5_VLForConditionalGeneration", makers.qwen25_config())
    folder = save_flat(tmp_path, model, makers.qwen_tokenizer())
    expected = main_array(folder, "cosmos-predict-2.5")
    rewrite(
        folder,
        lambda tensors: {
            prefix + name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
            if not name.startswith(("visual", "lm_head"))
        },
    )
    assert np.array_equal(main_array(folder, "cosmos-predict-2.5"), expected)


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_either_name_of_the_table_of_tokens_will_do(kept: str, umt5: Path) -> None:
    """Wan's checkpoints have one name only, and a configuration that does not tie them."""
    expected = main_array(umt5, "wan")
    rewrite(
        umt5,
        lambda tensors: {
            kept if "embed_tokens" in name or "shared" in name else name: t for name, t in tensors.items()
        },
    )
    config = json.loads((umt5 / "config.json").read_text())
    (umt5 / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert np.array_equal(main_array(umt5, "wan"), expected)


def test_a_checkpoint_in_parts(umt5: Path, tmp_path: Path) -> None:
    expected = main_array(umt5, "wan")
    tensors = load_file(umt5 / "model.safetensors")
    (umt5 / "model.safetensors").unlink()
    weight_map = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, umt5 / file)
    (umt5 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert np.array_equal(main_array(umt5, "wan"), expected)


def test_a_checkpoint_of_pytorch(umt5: Path) -> None:
    """T5-XXL is published in this form only. Code in it does not run."""
    expected = main_array(umt5, "wan")
    tensors: dict[str, Any] = dict(load_file(umt5 / "model.safetensors"))
    (umt5 / "model.safetensors").unlink()
    torch.save(tensors, umt5 / "pytorch_model.bin")
    assert np.array_equal(main_array(umt5, "wan"), expected)
    torch.save(tensors | {"evil": Path("/")}, umt5 / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="tensors only and its code is never run"):
        opened(umt5, "wan")


LAST = "encoder.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {n: t for n, t in tensors.items() if n != LAST}, "1 missing: encoder.final_layer_norm.weight"),
        (lambda tensors: tensors | {"encoder.more": torch.zeros(1)}, "1 unexpected: encoder.more"),
        (lambda tensors: tensors | {LAST: torch.zeros(3)}, r"1 of another shape: .*got \(3,\), expected \(32,\)"),
        (lambda tensors: tensors | {LAST: torch.full((32,), torch.nan)}, "NaN or infinite"),
        (
            lambda tensors: {n: t for n, t in tensors.items() if n[0] != "s" and "embed_tok" not in n},
            "2 missing: .*shared",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Callable[[Tensors], Tensors], message: str, umt5: Path) -> None:
    rewrite(umt5, change)
    with pytest.raises(WeightsError, match=message):
        opened(umt5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 100_000),
        ("num_heads", 7),
        ("d_kv", "x"),
        ("feed_forward_proj", "relu-relu-relu"),
        ("d_model", 64),
    ],
)
def test_configurations_that_do_not_fit_are_refused(field: str, value: Any, umt5: Path) -> None:
    config = json.loads((umt5 / "config.json").read_text())
    (umt5 / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(WeightsError, match=r"config\.json"):
        opened(umt5)


def test_a_tokenizer_that_comes_as_a_sentencepiece_model(umt5: Path) -> None:
    """T5's tokenizers are published in this form."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(5 * makers.CORPUS), model_writer=model, vocab_size=120, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (umt5 / "tokenizer.json").unlink()
    (umt5 / "spiece.model").write_bytes(model.getvalue())
    (umt5 / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    encoder = opened(umt5, "wan")
    (text,) = encoder.tokenize([encoder.render("a cat walks on the grass.")])
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("a cat walks on the grass.")
    assert text.ids == ((*expected, 1),)


def test_a_broken_tokenizer_is_refused(umt5: Path) -> None:
    (umt5 / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(WeightsError, match=r"the tokenizer in .* cannot be used"):
        opened(umt5)


def test_no_code_and_no_network(umt5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders can name code of their own; it is not run, and nothing is asked for at the Hub."""
    (umt5 / "evil.py").write_text("raise SystemExit('this code ran')")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}),
    ):
        values = json.loads((umt5 / name).read_text())
        (umt5 / name).write_text(json.dumps(values | {"auto_map": classes}))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something connects to the network"))
    assert main_array(umt5, "wan").shape[1] == 32


def test_bfloat16_gives_the_bits_of_the_pipeline(umt5: Path) -> None:
    """At the same shape nothing differs: a string alone, padded to the longest length."""
    import diffusers

    model = transformers.UMT5EncoderModel.from_pretrained(umt5, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(umt5)
    pipe = diffusers.WanPipeline(tokenizer, model, None, None, None)
    encoder: Any = load_text_encoder(str(umt5), EncoderOptions(), "cpu", "bfloat16")
    for caption in CAPTIONS:
        with torch.no_grad():
            expected, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=512)
        ours = embed(encoder, [caption], 512)[0]["text"].values
        assert np.array_equal(ours, expected[0, : len(ours)].float().numpy())


def test_every_model_type_of_the_table_has_a_class() -> None:
    types = {model for family in FAMILIES.values() for branch in family.branches for model in branch.models}
    assert types == MODEL_CLASSES.keys()
    assert all(hasattr(transformers, name) for name in MODEL_CLASSES.values())

"""Families whose main encoder is a language model, compared with their own pipelines of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.modular_pipelines.minimax_h3.encoders import get_qwen3vl_prompt_embeds
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import MINIMAX_H3_TEXT_TAG
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import Cosmos2_5_PredictBasePipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from pipeline.errors import ConfigError
from pipeline.text.encoder import EncoderOptions
from pipeline.text.encoders.opening import open_renderer
from stvae.weights import WeightsError
from tests.text.encoders import makers
from tests.text.encoders.comparison import CAPTIONS, LONG, assert_close, check_batches, embed, opened, padded

QUOTES = 'A sign says "STOP" and “Halt”, then "STOP" again'


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any]:
    return makers.model("CLIPTextModel", makers.clip_config()), makers.clip_tokenizer()


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any]:
    return makers.model("Qwen2_5_VLForConditionalGeneration", makers.qwen25_config()), makers.qwen_tokenizer()


def test_hunyuan_video(clip: tuple[Any, Any], tmp_path: Path) -> None:
    config = transformers.LlamaConfig(vocab_size=350, **makers.LAYERS)
    llama = makers.model("LlamaModel", config), makers.llama_tokenizer()
    folder = makers.save(tmp_path, {"": llama, "_2": clip}, {"_class_name": "HunyuanVideoPipeline"})
    pipe = diffusers.HunyuanVideoPipeline(*llama, None, None, None, *clip)
    encoder = opened(folder)
    assert encoder.card.lengths[-1] == 351 and encoder.card.template.count("{}") == 1
    check_batches(encoder)
    for caption in [*CAPTIONS, "braces {} and {0}"]:
        with torch.no_grad():
            expected, pooled, mask = pipe.encode_prompt(caption, device="cpu")
        arrays = embed(encoder, [caption])[0]
        ours = padded(encoder.card.array("text"), arrays["text"])
        assert torch.equal(ours.mask, mask[0].bool())
        assert_close(ours.values, expected[0] * mask[0][:, None])
        assert_close(torch.from_numpy(arrays["pooled"].values), pooled[0])


def test_hunyuan_video_15(qwen: tuple[Any, Any], tmp_path: Path) -> None:
    text_model = qwen[0].model.language_model
    config = transformers.T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=37, num_layers=2, num_heads=2)
    byt5 = makers.model("T5EncoderModel", config), transformers.ByT5Tokenizer()
    folder = makers.save(tmp_path, {"": (text_model, qwen[1]), "_2": byt5}, {"_class_name": "HunyuanVideo15Pipeline"})
    encoder = opened(folder)
    for caption in [*CAPTIONS, QUOTES, 'long "' + LONG + '" text', 'empty ""']:
        with torch.no_grad():
            expected, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(text_model, qwen[1], caption, "cpu")
            glyphs, glyph_mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(byt5[1], byt5[0], caption, "cpu")
        arrays = embed(encoder, [caption])[0]
        for name, values, ones in (("text", expected, mask), ("glyphs", glyphs, glyph_mask)):
            ours = padded(encoder.card.array(name), arrays[name])
            assert torch.equal(ours.mask, ones[0].bool())
            assert_close(ours.values, values[0] * ones[0][:, None])
    assert embed(encoder, ["no quotes"])[0]["glyphs"].length == 0
    assert encoder.render(QUOTES) == (QUOTES, 'Text "STOP". Text "Halt". ')
    check_batches(encoder)


def test_kandinsky_5(qwen: tuple[Any, Any], clip: tuple[Any, Any], tmp_path: Path) -> None:
    folder = makers.save(tmp_path, {"": qwen, "_2": clip}, {"_class_name": "Kandinsky5T2VPipeline"})
    pipe = diffusers.Kandinsky5T2VPipeline(None, None, *qwen, *clip, None)
    pipe.tokenizer = lambda text, images, videos, **options: qwen[1](text, **options)
    pipe.tokenizer.decode = qwen[1].decode
    encoder = opened(folder)
    check_batches(encoder)
    for caption in CAPTIONS:
        with torch.no_grad():
            expected, pooled, lengths = pipe.encode_prompt(caption, device="cpu", max_sequence_length=512)
        arrays = embed(encoder, [caption])[0]
        assert arrays["text"].length == int(lengths[1])
        assert_close(torch.from_numpy(arrays["text"].values), expected[0])
        assert_close(torch.from_numpy(arrays["pooled"].values), pooled[0])


def test_sana_video(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        vocab_size=350, num_key_value_heads=2, head_dim=8, sliding_window=16, **makers.LAYERS
    )
    gemma = makers.model("Gemma2Model", config), makers.gemma_tokenizer()
    folder = makers.save(tmp_path, {"": gemma}, {"_class_name": "SanaVideoPipeline"})
    pipe = diffusers.SanaVideoPipeline(gemma[1], gemma[0], None, None, None)
    encoder = opened(folder)
    instruction = encoder.card.template.removesuffix("{}").split("\n")
    check_batches(encoder)
    for caption in CAPTIONS:
        with torch.no_grad():
            expected, mask, null, null_mask = pipe.encode_prompt(
                caption, complex_human_instruction=instruction, device="cpu"
            )
        ours = padded(encoder.card.array("text"), embed(encoder, [caption])[0]["text"])
        assert torch.equal(ours.mask, mask[0].bool())
        assert_close(ours.values, expected[0] * mask[0][:, None])
    ours = padded(encoder.card.array("text"), encoder.encode_null()["text"])
    assert torch.equal(ours.mask, null_mask[0].bool())
    assert_close(ours.values, null[0] * null_mask[0][:, None])


def test_easyanimate(tmp_path: Path) -> None:
    text = makers.LAYERS | {"vocab_size": 350, "num_key_value_heads": 2, "rope_parameters": makers.ROPE}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32}
    )
    qwen2 = makers.model("Qwen2VLForConditionalGeneration", config), makers.qwen_tokenizer()
    folder = makers.save(tmp_path, {"": qwen2}, {"_class_name": "EasyAnimatePipeline"})
    pipe = SimpleNamespace(tokenizer=qwen2[1], text_encoder=qwen2[0], enable_text_attention_mask=True)
    encoder = opened(folder)
    for caption in CAPTIONS:
        with torch.no_grad():
            expected, null, _, _ = diffusers.EasyAnimatePipeline.encode_prompt(pipe, caption, negative_prompt="")
        assert_close(torch.from_numpy(embed(encoder, [caption])[0]["text"].values), expected[0])
    assert_close(torch.from_numpy(embed(encoder, [""])[0]["text"].values), null[0])


def test_cosmos_predict_25_is_refused_with_its_size_unless_asked_for(qwen: tuple[Any, Any], tmp_path: Path) -> None:
    folder = makers.save(tmp_path, {"": qwen}, {"_class_name": "Cosmos2_5_PredictBasePipeline"})
    with pytest.raises(ConfigError, match=r"102\.8 MB with the published model.*--allow-large"):
        open_renderer(str(folder), EncoderOptions())
    pipe = SimpleNamespace(tokenizer=qwen[1], text_encoder=qwen[0])
    encoder = opened(folder, large=True)
    assert encoder.card.array("text").width == 3 * 32
    check_batches(encoder)
    for caption in [*CAPTIONS, encoder.card.null.text]:
        with torch.no_grad():
            expected = Cosmos2_5_PredictBasePipeline._get_prompt_embeds(pipe, caption, device="cpu")
        assert_close(torch.from_numpy(embed(encoder, [caption])[0]["text"].values), expected[0])


def test_minimax_h3(tmp_path: Path) -> None:
    """State 50 of a deeper stack. The last state is normalized, so a stack that ends there is refused."""
    model, tokenizer = makers.model("Qwen3VLForConditionalGeneration", makers.qwen3_config(52)), makers.qwen_tokenizer()
    folder = makers.save(tmp_path, {"": (model, tokenizer)})
    processor = SimpleNamespace(create_mm_token_type_ids=lambda rows: [[0] * len(row) for row in rows])
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    for layers in (52, 51):
        config["text_config"]["num_hidden_layers"] = layers
        (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
        encoder = opened(folder)
        assert encoder.card.family == "minimax-h3" and f"tag {MINIMAX_H3_TEXT_TAG}" in encoder.card.cut
        captions = [CAPTIONS[0], "", 10 * CAPTIONS[0]]
        for caption, ours in zip(captions, embed(encoder, captions), strict=True):
            if not caption:
                assert ours["text"].values.shape == (0, 32)
                continue
            ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                expected = get_qwen3vl_prompt_embeds(model, processor, ids, device="cpu", dtype=torch.float32)
            assert_close(torch.from_numpy(ours["text"].values), expected[0])
        assert embed(encoder, [""])[0]["text"].values.shape == (0, 32)
    config["text_config"]["num_hidden_layers"] = 50
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="50 layers"):
        opened(folder)


CONNECTOR = {
    "caption_channels": 32,
    "text_proj_in_factor": 4,
    **{f"{name}_connector_num_attention_heads": 2 for name in ("video", "audio")},
    **{f"{name}_connector_attention_head_dim": 16 for name in ("video", "audio")},
    **{f"{name}_connector_num_layers": 1 for name in ("video", "audio")},
}


def save_connector(folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    connectors: Any = LTX2TextConnectors(**CONNECTOR | settings).eval().requires_grad_(False)
    connectors.save_pretrained(folder)
    return connectors


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A pipeline's folder with Gemma-3, without connectors, and the pipeline."""
    model, tokenizer = makers.model("Gemma3ForConditionalGeneration", makers.gemma3_config()), makers.gemma_tokenizer()
    folder = makers.save(tmp_path_factory.mktemp("gemma"), {"": (model, tokenizer)})
    return folder, diffusers.LTX2Pipeline(None, None, None, model, tokenizer, None, None, None)


@pytest.mark.parametrize("modalities", [False, True], ids=["ltx-2", "ltx-2.3"])
@pytest.mark.parametrize("registers", [32, None])
def test_ltx_2(gemma: tuple[Path, Any], tmp_path: Path, modalities: bool, registers: int | None) -> None:
    """The cut before the connector is what its pipeline gives to the connector, and after it what comes out."""
    folder, pipe = gemma
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    settings: dict[str, Any] = {f"{name}_connector_num_learnable_registers": registers for name in ("video", "audio")}
    if modalities:
        settings |= {
            "per_modality_projections": True,
            "video_hidden_dim": 32,
            "audio_hidden_dim": 32,
            "proj_bias": True,
        }
    connectors = save_connector(tmp_path / "connectors", **settings)
    seen: dict[str, torch.Tensor] = {}
    for name in ("video", "audio"):
        connector = getattr(connectors, f"{name}_connector")
        connector.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0]}))
    before, after = opened(tmp_path), opened(tmp_path, connector=str(tmp_path / "connectors"))
    check_batches(before)
    check_batches(after)
    assert before.card.encoder_sha256 == after.card.encoder_sha256 and before.card.cut != after.card.cut
    for caption in CAPTIONS:
        with torch.no_grad():
            stack, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, device="cpu")
            video, audio, connected_mask = connectors(stack, mask, padding_side="left")
        arrays = embed(before, [caption])[0]
        for name in ("video", "audio"):
            array = before.card.array(name if modalities else "text")
            ours = padded(array, arrays[array.name])
            assert torch.equal(ours.mask, mask[0].bool())
            assert_close(ours.values, seen[name][0] * mask[0][:, None])
        arrays = embed(after, [caption])[0]
        for name, expected in (("video", video), ("audio", audio)):
            ours = padded(after.card.array(name), arrays[name])
            assert torch.equal(ours.mask, connected_mask[0].bool())
            assert_close(ours.values, expected[0] * connected_mask[0][:, None])


def test_ltx_25_reads_gemma_4(tmp_path: Path) -> None:
    model = makers.model("Gemma4UnifiedForConditionalGeneration", makers.gemma4_config())
    tokenizer = makers.gemma_tokenizer()
    folder = makers.save(tmp_path, {"": (model, tokenizer)}, {"_class_name": "LTX2Pipeline"})
    check_stack(folder, diffusers.LTX2Pipeline(None, None, None, model, tokenizer, None, None, None))


def check_stack(folder: Path, pipe: Any) -> None:
    """Compare all hidden states, which nobody stores, with those of the pipeline."""
    encoder = opened(folder, large=True)
    for caption in CAPTIONS[:2]:
        with torch.no_grad():
            stack, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, device="cpu")
        ours = padded(encoder.card.array("text"), embed(encoder, [caption])[0]["text"])
        assert torch.equal(ours.mask, mask[0].bool())
        assert_close(ours.values, stack[0] * mask[0][:, None])


def test_ltx_2_without_a_projection_is_refused_with_its_size_unless_asked_for(gemma: tuple[Path, Any]) -> None:
    folder, pipe = gemma
    check_stack(folder, pipe)
    with pytest.raises(ConfigError, match=r"385\.4 MB .* connectors"):
        open_renderer(str(folder), EncoderOptions())


def test_the_longest_length_fits_the_registers_of_the_connector(gemma: tuple[Path, Any], tmp_path: Path) -> None:
    save_connector(tmp_path, video_connector_num_learnable_registers=32)
    with pytest.raises(ConfigError, match="multiple of the connector's 32 registers, got 100"):
        open_renderer(str(gemma[0]), EncoderOptions(connector=str(tmp_path), max_tokens=100))

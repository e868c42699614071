"""Families whose main encoder is T5 or UMT5, compared with their own pipelines of diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.allegro.pipeline_allegro import AllegroPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.text.captions.cleaning import clean_open_sora, clean_wan
from tests.text.encoders import makers
from tests.text.encoders.comparison import CAPTIONS, LONG, assert_close, check_batches, embed, opened, padded

T5_PIPELINES = {
    "mochi": ("MochiPipeline", 256),
    "ltx-video": ("LTXPipeline", 128),
    "ltx-video-0.9.5": ("LTXConditionPipeline", 256),
    "allegro": ("AllegroPipeline", 512),
    "cogvideox": ("CogVideoXPipeline", 226),
    "cosmos-predict": ("CosmosTextToWorldPipeline", 512),
    "wan": ("WanPipeline", 512),
}
"""Pipelines by family, and the number of tokens that their ``__call__`` takes."""
PARTS = "vae transformer scheduler safety_checker feature_extractor image_processor image_encoder"


@pytest.fixture(scope="module")
def t5() -> tuple[Any, Any]:
    return makers.model("T5EncoderModel", makers.t5_config()), makers.t5_tokenizer()


@pytest.fixture(scope="module")
def folders(t5: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a T5, and one with an UMT5."""
    umt5 = makers.model("UMT5EncoderModel", makers.umt5_config()), t5[1]
    root = tmp_path_factory.mktemp("t5")
    return {"t5": makers.save(root / "t5", {"": t5}), "umt5": makers.save(root / "umt5", {"": umt5})}


def pipeline_of(class_name: str, folder: Path, **settings: Any) -> Any:
    """A pipeline with the text encoder of a folder and nothing else."""
    pipeline_class: Any = getattr(diffusers, class_name)
    wanted = pipeline_class.__init__.__annotations__
    nothing = {name: None for name in PARTS.split() if name in wanted}
    if "safety_checker" in nothing:
        nothing["safety_checker"] = torch.nn.Identity()
    text = "UMT5EncoderModel" if "umt5" in folder.name else "T5EncoderModel"
    import transformers

    encoder = getattr(transformers, text).from_pretrained(folder / "text_encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    return pipeline_class(text_encoder=encoder, tokenizer=tokenizer, **nothing, **settings)


@pytest.mark.parametrize("family", T5_PIPELINES)
def test_embeddings_masks_and_null_are_those_of_the_pipeline(family: str, folders: dict[str, Path]) -> None:
    class_name, max_tokens = T5_PIPELINES[family]
    folder = folders["umt5" if family == "wan" else "t5"]
    settings = {"force_zeros_for_empty_prompt": True} if family == "mochi" else {}
    pipe = pipeline_of(class_name, folder, **settings)
    encoder = opened(folder, family)
    array = encoder.card.array("text")
    assert array.max_tokens == max_tokens
    for caption in CAPTIONS:
        with torch.no_grad():
            outputs = pipe.encode_prompt(caption, negative_prompt="", max_sequence_length=max_tokens, device="cpu")
        ours = padded(array, embed(encoder, [caption])[0]["text"])
        null = padded(array, embed(encoder, [encoder.card.null.text])[0]["text"])
        masked = len(outputs) == 4
        if masked:
            expected, mask, null_expected, null_mask = outputs
            assert (
                array.masked and torch.equal(ours.mask, mask[0].bool()) and torch.equal(null.mask, null_mask[0].bool())
            )
            expected = expected * mask[:, :, None]
            null_expected = null_expected * null_mask[:, :, None]
        else:
            expected, null_expected = outputs
            assert not array.masked
        assert_close(ours.values, expected[0])
        assert_close(null.values, null_expected[0])


@pytest.mark.parametrize("family", [*T5_PIPELINES, "open-sora-1.2"])
def test_a_caption_does_not_depend_on_its_batch(family: str, folders: dict[str, Path]) -> None:
    """Neither other captions nor the length to which a batch is padded change an embedding by more than rounding."""
    check_batches(opened(folders["umt5" if family == "wan" else "t5"], family), CAPTIONS)


def test_padding_that_changes_embeddings_has_one_length(folders: dict[str, Path]) -> None:
    encoder = opened(folders["t5"], "cogvideox")
    assert encoder.card.lengths == (226,)
    with pytest.raises(ConfigError, match="pads every string to 226 tokens"):
        embed(encoder, ["a cat"], 64)


def test_empty_strings_do_not_change_the_bits_of_others(folders: dict[str, Path]) -> None:
    """Mochi's empty caption has no tokens, but a row of the batch."""
    encoder = opened(folders["t5"], "mochi")
    first, second = embed(encoder, ["a cat", "a dog"], 64), embed(encoder, ["a cat", ""], 64)
    assert np.array_equal(first[0]["text"].values, second[0]["text"].values)
    assert second[1]["text"].values.shape == (0, 32)


def test_open_sora_takes_what_its_own_code_takes(t5: tuple[Any, Any], folders: dict[str, Path]) -> None:
    """Its text encoder runs T5 with a mask over 300 tokens and its transformer drops what the mask excludes."""
    model, tokenizer = t5
    encoder = opened(folders["t5"], "open-sora-1.2")
    for caption in CAPTIONS:
        tokens = tokenizer(
            [caption],
            max_length=300,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            y = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        ours = padded(encoder.card.array("text"), embed(encoder, [caption])[0]["text"])
        assert torch.equal(ours.mask, tokens.attention_mask[0].bool())
        assert_close(ours.values[ours.mask], y[0][ours.mask])
    assert encoder.card.null.kind == "checkpoint" and "y_embedding" in encoder.card.null.note


def test_open_sora_2_takes_what_flux_takes(t5: tuple[Any, Any], tmp_path: Path) -> None:
    """Its own code encodes as Flux does: T5 without a mask, and CLIP's pooled vector."""
    clip = makers.model("CLIPTextModel", makers.clip_config()), makers.clip_tokenizer()
    folder = makers.save(tmp_path, {"": t5, "_2": clip})
    pipe = diffusers.FluxPipeline(None, None, *clip, *t5, None)
    encoder = opened(folder)
    assert encoder.card.family == "open-sora-2" and not encoder.card.array("text").trimmed
    for caption in CAPTIONS:
        with torch.no_grad():
            expected, pooled, _ = pipe.encode_prompt(caption, None, max_sequence_length=512, device="cpu")
        ours = embed(encoder, [caption])[0]
        assert_close(torch.from_numpy(ours["text"].values), expected[0])
        assert_close(torch.from_numpy(ours["pooled"].values), pooled[0])


def test_clip_alone(tmp_path: Path) -> None:
    model, tokenizer = makers.model("CLIPTextModel", makers.clip_config()), makers.clip_tokenizer()
    for built in (model, tokenizer):
        built.save_pretrained(tmp_path)
    encoder = opened(tmp_path)
    assert encoder.card.family == "clip" and encoder.card.lengths == (77,)
    for caption, ours in zip(CAPTIONS, embed(encoder, CAPTIONS), strict=True):
        tokens = tokenizer([caption], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        assert_close(torch.from_numpy(ours["pooled"].values), model(tokens.input_ids).pooler_output[0])


def test_mochi_without_zeros_for_the_empty_prompt(t5: tuple[Any, Any], tmp_path: Path) -> None:
    folder = makers.save(tmp_path, {"": t5}, {"_class_name": "MochiPipeline", "force_zeros_for_empty_prompt": False})
    assert embed(opened(folder), [""])[0]["text"].length == 1  # the end of the string


def test_fewer_tokens_on_request(folders: dict[str, Path]) -> None:
    encoder = opened(folders["umt5"], max_tokens=226)
    assert encoder.card.lengths[-1] == encoder.card.array("text").max_tokens == 226
    (text,) = encoder.tokenize([encoder.render(LONG)])
    assert text.length == 226 and text.truncated and text.num_tokens > 226


@pytest.fixture(scope="module")
def clean_once() -> Callable[[str], str]:
    """Open-Sora's rules as diffusers has them, under the Apache license."""
    pipe = SimpleNamespace(bad_punct_regex=AllegroPipeline.bad_punct_regex)
    return lambda caption: AllegroPipeline._clean_caption(pipe, caption)


WORDS = (
    "a cat, sleeps. <b>x</b> &quot; &lt;b&gt; <![x http: www:a 12:34 a:b '' “q” #12 #12345 1234567 a1b2 1920x1080 a-b c_d "
    "@me x.png https://a.com/b free download click for me page 1 (x) [y] ... * 1.2.3.4 猫 cafÃ© <person> \\n"
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()) | st.text(max_size=6), max_size=12).map(" ".join))
def test_open_sora_rules_are_those_of_diffusers(clean_once: Callable[[str], str], caption: str) -> None:
    try:
        expected = clean_once(clean_once(caption))
    except Exception:
        expected = None  # its HTML parser gives up
    cleaned = clean_open_sora(caption)
    assert expected is None or cleaned == expected
    assert cleaned == cleaned.strip()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_wan_cleaning_is_that_of_diffusers(caption: str) -> None:
    assert clean_wan(caption) == prompt_clean(caption)
    assert not re.search(r"\s\s", clean_wan(caption))

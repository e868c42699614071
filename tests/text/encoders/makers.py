"""Tiny text encoders with random weights, and tokenizers trained on the spot, as published folders hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "a cat walks on the grass, realistic. a dog sleeps.",
    "The camera pans right over a city street at dusk; people talk.",
    "Describe the video by detailing the following aspects of an object 1 2 3 4 5",
    'system user assistant You are a helpful "text" \u4e00\u4e8c caf\u00e9',
]
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 37}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
VISION = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part['text'] }}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of Qwen, without tools and pictures."""


def t5_tokenizer() -> Any:
    """A unigram model with the special tokens of T5, which ends each string with ``</s>``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token=special[2], initial_alphabet=[*"abcdefghijklmnopqrstuvwxyz"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[1], unk_token=special[2]
    )


def bytes_tokenizer(special: list[str], single: str = "$A", **tokens: Any) -> Any:
    """A byte-level BPE model. ``single``: where special tokens stand around a string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def clip_tokenizer() -> Any:
    start, end = "<|startoftext|>", "<|endoftext|>"
    return bytes_tokenizer(
        [start, end], f"{start} $A {end}", bos_token=start, eos_token=end, pad_token=end, model_max_length=77
    )


def llama_tokenizer() -> Any:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    return bytes_tokenizer(special, "<|begin_of_text|> $A", **names)


def gemma_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return bytes_tokenizer(special, "<bos> $A", bos_token=special[2], eos_token=special[1], pad_token=special[0])


def qwen_tokenizer() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return bytes_tokenizer(special, pad_token=special[0], eos_token=special[2], chat_template=CHAT)


def t5_config() -> Any:
    return transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)


def umt5_config() -> Any:
    return transformers.UMT5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)


def clip_config(eos: int = 1) -> Any:
    sizes = LAYERS | {"hidden_size": 24}
    return transformers.CLIPTextConfig(vocab_size=350, eos_token_id=eos, bos_token_id=0, pad_token_id=eos, **sizes)


def qwen25_config() -> Any:
    text = LAYERS | {"vocab_size": 350, "num_key_value_heads": 2, "rope_parameters": ROPE}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=VISION)


def qwen3_config(layers: int) -> Any:
    text = LAYERS | {"vocab_size": 350, "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": ROPE}
    vision = VISION | {"deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLConfig(text_config=text | {"num_hidden_layers": layers}, vision_config=vision)


def gemma3_config() -> Any:
    text = LAYERS | {"vocab_size": 350, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    vision = LAYERS | {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1}
    return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)


def gemma4_config() -> Any:
    sizes = {"vocab_size": 350, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "sliding_window": 16}
    return transformers.Gemma4UnifiedConfig(text_config=LAYERS | sizes)


def model(class_name: str, config: Any) -> Any:
    """A model of transformers with random weights that differ between layers and make no tiny values."""
    torch.manual_seed(0)
    built = getattr(transformers, class_name)(config).eval().requires_grad_(False)
    for tensor in built.parameters():
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=0.2)
    return built


def save(folder: Path, encoders: dict[str, tuple[Any, Any]], index: dict[str, Any] | None = None) -> Path:
    """Write a folder as a pipeline has it. ``encoders``: model and tokenizer by the suffix of their folders' names."""
    for suffix, (built, tokenizer) in encoders.items():
        built.save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder

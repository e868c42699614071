"""Loads the text model of an encoder's folder: no code from the folder, no network, and only what is used.

A checkpoint of a model that also sees or speaks has its text model's weights under a prefix. Other weights, and layers
behind the one whose output is taken, are never read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from pipeline.text.encoders.folders import Part
from stvae.checkpoints.bounded_build import build_bounded
from stvae.checkpoints.files import WeightsError, describe
from stvae.weights import merge_infos, open_files

MODEL_CLASSES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "llama": "LlamaModel",
    "gemma2": "Gemma2Model",
    "gemma3": "Gemma3TextModel",
    "gemma3_text": "Gemma3TextModel",
    "gemma4_unified": "Gemma4UnifiedTextModel",
    "gemma4_unified_text": "Gemma4UnifiedTextModel",
    "qwen2_vl": "Qwen2VLTextModel",
    "qwen2_vl_text": "Qwen2VLTextModel",
    "qwen2_5_vl": "Qwen2_5_VLTextModel",
    "qwen2_5_vl_text": "Qwen2_5_VLTextModel",
    "qwen3_vl": "Qwen3VLTextModel",
    "qwen3_vl_text": "Qwen3VLTextModel",
}
"""The class of the text model, by ``model_type`` of the configuration."""
OTHER_WEIGHTS = re.compile(
    r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector)\.|lm_head\.|decoder\.|(visual|text)_projection\."
    r"|logit_scale|.*\.(inv_freq|position_ids)$"
)
"""Weights that belong to pictures or answers, and constants that older checkpoints hold."""
TEXT_PREFIX = re.compile(r"^(model\.)?(language_model\.)?(model\.|text_model\.)?")
"""Parts that may stand before the names of a text model's weights."""
TIED = {"shared.weight", "encoder.embed_tokens.weight"}
"""Two names of T5's table of tokens. A checkpoint has one of them or both."""


def load_model(part: Part, config: Any, device: str, compute_dtype: torch.dtype) -> nn.Module:
    """Load the text model of a part. ``config``: what ``text_config`` made of its configuration.

    WeightsError names weights that are missing or of another shape, and files that are damaged.
    """
    model_class = getattr(transformers, MODEL_CLASSES[part.config["model_type"]])
    files = open_files(part.folder)
    infos = merge_infos(files)
    names = _stored_names(infos, config.num_hidden_layers)
    with torch.device("meta"):
        where = f"'{part.folder / 'config.json'}'"
        skeleton: nn.Module = build_bounded(lambda: model_class(config), len(names), where)
    _check_shapes(part, skeleton, {name: infos[key][1].shape for key, name in names.items()})
    tensors = {names[key]: tensor for file in files for key, tensor in file.tensors(names).items()}
    try:
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=compute_dtype, output_loading_info=True
        )
    except Exception as error:  # transformers raises anything for sizes that do not go together
        raise WeightsError(f"the weights in '{part.folder}' cannot be loaded: {describe(error)}") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        raise WeightsError(
            f"the weights in '{part.folder}' do not fit its config.json: {sorted(info['missing_keys'])[:10]}"
        )
    model.eval().requires_grad_(False).to(device)
    for key, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"tensor '{key}' in {part.folder} has NaN or infinite values; download the weights again"
            )
    loaded: nn.Module = model
    return loaded


def text_config(part: Part, layers: int | None) -> Any:
    """The configuration of the text model of a part, with its first ``layers`` layers or all of them.

    WeightsError if transformers refuses it.
    """
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[part.config["model_type"]]
    try:
        whole = config_class.from_dict(part.config)
        config = getattr(whole, "text_config", None) or whole
        if layers is not None and layers < config.num_hidden_layers:
            types = getattr(config, "layer_types", None)
            config.num_hidden_layers = layers
            if types:
                config.layer_types = types[:layers]
    except Exception as error:
        raise WeightsError(f"'{part.folder / 'config.json'}' cannot be used: {describe(error)}") from None
    return config


def _stored_names(stored: Collection[str], layers: int) -> dict[str, str]:
    """Names of the text model's weights: their name in the model, by their name in the checkpoint."""
    names: dict[str, str] = {}
    is_composite = any("language_model." in key for key in stored)
    for key in stored:
        if OTHER_WEIGHTS.match(key) or (is_composite and "language_model." not in key):
            continue
        name = TEXT_PREFIX.sub("", key)
        layer = re.match(r"layers\.(\d+)\.", name)
        if layer is None or int(layer[1]) < layers:
            names[key] = name
    return names


def _check_shapes(part: Part, skeleton: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise WeightsError unless the checkpoint has every tensor of the model in its shape, and no other."""
    expected = {TEXT_PREFIX.sub("", name): tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    tied = TIED if TIED & shapes.keys() else set()
    problems = {
        "missing": sorted(expected.keys() - shapes.keys() - tied),
        "unexpected": sorted(shapes.keys() - expected.keys() - tied),
        "of another shape": [
            f"{name} (got {shapes[name]}, expected {shape})"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    found = [
        f"{len(names)} {problem}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise WeightsError(f"the weights in {part.folder} do not fit its config.json; {'; '.join(found)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing notes, reports and progress bars while it loads."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

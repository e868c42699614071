"""The sets that are exported: one for each family of models, with its class of VAE and its text encoders in a tiny size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from pipeline.bucket import Bucket
from tests.support import tiny_vaes
from tests.support.captioned_set import Captions
from tests.support.export_set import mixed_samples, write_mixed_set
from tests.text.encoders import makers

BUCKETS = Bucket(1, 64, 64), Bucket(17, 64, 96)
UPRIGHT = Captions(caption="an upright clip", bucket=Bucket(17, 96, 64))
CONNECTOR = {
    "caption_channels": 32,
    "text_proj_in_factor": 4,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 8,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 32,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 8,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 32,
}
SEPARATE = {"per_modality_projections": True, "video_hidden_dim": 32, "audio_hidden_dim": 32, "proj_bias": True}


def wan(folder: Path) -> Path:
    """Wan 2.1: UMT5, one array without a mask."""
    umt5 = makers.model("UMT5EncoderModel", makers.umt5_config()), makers.t5_tokenizer()
    encoder = makers.save(folder / "text", {"": umt5}, {"_class_name": "WanPipeline"})
    return _make(folder, "AutoencoderKLWan", [str(encoder)])


def hunyuan(folder: Path) -> Path:
    """Open-Sora 2.0, which has HunyuanVideo's VAE: T5 with its padding, and CLIP's vector."""
    encoders = {
        "": (makers.model("T5EncoderModel", makers.t5_config()), makers.t5_tokenizer()),
        "_2": (makers.model("CLIPTextModel", makers.clip_config()), makers.clip_tokenizer()),
    }
    encoder = makers.save(folder / "text", encoders)
    return _make(folder, "AutoencoderKLHunyuanVideo", [str(encoder), "--family", "open-sora-2"])


def ltx2(folder: Path, separate: bool = False, connected: bool = False) -> Path:
    """LTX-2: Gemma's projected states, padded on the left.

    separate: LTX-2.3, which projects them for video and for audio. connected: embeddings after the connector.
    """
    gemma = makers.model("Gemma3ForConditionalGeneration", makers.gemma3_config()), makers.gemma_tokenizer()
    encoder = makers.save(folder / "text", {"": gemma}, {"_class_name": "LTX2Pipeline"})
    torch.manual_seed(0)
    LTX2TextConnectors(**CONNECTOR, **(SEPARATE if separate else {})).save_pretrained(encoder / "connectors")
    flags = ["--connector", str(encoder / "connectors")] if connected else []
    return _make(folder, "AutoencoderKLLTX2Video", [str(encoder), *flags])


def _make(folder: Path, vae: str, encoder: Sequence[str]) -> Path:
    checkpoint = tiny_vaes.save(vae, folder / "vae")
    return write_mixed_set(folder / "output", [*mixed_samples(*BUCKETS), UPRIGHT], encoder, checkpoint)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "wan": wan,
    "hunyuan": hunyuan,
    "ltx-2": ltx2,
    "ltx-2.3": lambda folder: ltx2(folder, separate=True),
    "ltx-2-connected": lambda folder: ltx2(folder, connected=True),
}
"""The function that makes a set, by the family's name in the catalog."""

"""Transformers of families with a mask do not see the rows that are trimmed, so that a loader may pad with zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipeline.text.encoders.table import FAMILIES

WIDTH, LONGEST = 16, 12
HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}
VIDEO = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
TIME = torch.tensor([500, 500])


def mochi() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.MochiTransformer3DModel(
        **HEADS, num_layers=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=WIDTH, time_embed_dim=8
    )
    return lambda text, mask: model(VIDEO, text, TIME, mask)


def ltx_video() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, **HEADS, cross_attention_dim=24, num_layers=2, caption_channels=WIDTH
    )
    tokens = VIDEO.flatten(2).transpose(1, 2)
    return lambda text, mask: model(tokens, text, TIME, mask, num_frames=3, height=4, width=4)


def allegro() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=WIDTH,
        sample_height=4, sample_width=4, sample_frames=3,
    )  # fmt: skip
    angles = tuple((torch.ones(12, 4), torch.zeros(12, 4)) for _ in range(3))
    rope = (angles, tuple(torch.zeros(3, 1, 12, dtype=torch.long)))
    return lambda text, mask: model(VIDEO, text, TIME, None, mask, image_rotary_emb=rope)


def hunyuan_video() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, **HEADS, num_layers=1, num_single_layers=1, num_refiner_layers=1,
        text_embed_dim=WIDTH, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    return lambda text, mask: model(VIDEO, TIME, text, mask, torch.ones(2, 8), torch.tensor([1.0, 1.0]))


def hunyuan_video_15() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, **HEADS, num_layers=1, num_refiner_layers=1, text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH, image_embed_dim=8, rope_axes_dim=(4, 4, 4), target_size=4, task_type="t2v",
    )  # fmt: skip
    image = torch.zeros(2, 3, 8)
    glyphs, no_glyphs = torch.zeros(2, 6, WIDTH), torch.zeros(2, 6, dtype=torch.bool)
    return lambda text, mask: model(VIDEO, TIME.float(), text, mask, None, glyphs, no_glyphs, image)


def sana_video() -> Callable[[Tensor, Tensor], Any]:
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, **HEADS, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=12,
        cross_attention_dim=24, caption_channels=WIDTH, sample_size=4,
    )  # fmt: skip
    return lambda text, mask: model(VIDEO, text, TIME, None, mask)


MODELS = {
    "mochi": mochi,
    "ltx-video": ltx_video,
    "allegro": allegro,
    "hunyuan-video": hunyuan_video,
    "hunyuan-video-1.5": hunyuan_video_15,
    "sana-video": sana_video,
}


@pytest.mark.parametrize("family", MODELS)
def test_trimmed_rows_padded_with_zeros_give_the_same_output(family: str) -> None:
    assert FAMILIES[family].branches[0].trimmed and FAMILIES[family].branches[0].masked
    torch.manual_seed(0)
    call = MODELS[family]()
    text = torch.randn(2, LONGEST, WIDTH)
    mask = torch.arange(LONGEST) < torch.tensor([[3], [7]])
    with torch.no_grad():
        expected = call(text, mask)[0]
        for length in (LONGEST, 7):
            ours = call((text * mask[:, :, None])[:, :length], mask[:, :length])[0]
            assert torch.allclose(ours, expected, atol=1e-5), (family, length, float((ours - expected).abs().max()))
        assert not torch.allclose(call(text * 2, mask)[0], expected, atol=1e-5), "the text matters"

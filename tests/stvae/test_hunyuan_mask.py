"""HunyuanVideo 1.5's attention mask against the one of diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock

from stvae import load_vae
from stvae.autoencoder import mean_and_logvar
from stvae.classes.hunyuan_mask import causal_mask
from tests.support import tiny_vaes


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize(("frames", "cells"), [(1, 6), (3, 4), (5, 1)])
def test_the_mask_is_that_of_diffusers(frames: int, cells: int, batch_size: int | None) -> None:
    arguments = (frames, cells, torch.bfloat16, torch.device("cpu"), batch_size)
    expected = HunyuanVideo15AttnBlock.prepare_causal_attention_mask(*arguments)
    mask = causal_mask(*arguments)
    assert torch.equal(mask, expected) and mask.dtype == expected.dtype


def test_moments_are_those_of_diffusers(tmp_path: Path) -> None:
    folder = tiny_vaes.save("AutoencoderKLHunyuanVideo15", tmp_path)
    pixels = torch.randint(0, 256, (1, 3, 9, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae = load_vae(folder)
    theirs = diffusers.AutoencoderKLHunyuanVideo15.from_pretrained(folder)
    blocks = [module for module in theirs.modules() if isinstance(module, HunyuanVideo15AttnBlock)]
    assert blocks and all("causal_mask" not in repr(block.prepare_causal_attention_mask) for block in blocks)
    assert any(getattr(m, "prepare_causal_attention_mask", None) is causal_mask for m in vae.model.modules())
    with torch.inference_mode():
        moments = mean_and_logvar(theirs.eval().encode(pixels.float() / 127.5 - 1))
    assert torch.allclose(vae.encode(pixels), torch.cat(moments, dim=1), atol=1e-5)  # type: ignore[arg-type]

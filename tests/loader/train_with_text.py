"""Training loops with cross-attention over latents and texts, without a text encoder in memory.

``python -m tests.loader.train_with_text LATENTS`` trains two tiny transformers, each on one repeated batch, and prints the
losses as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from pipeline.loader import LatentDataset
from pipeline.loader.open_sora import open_sora_batch
from pipeline.loader.text.layer import NO_ROW
from pipeline.loader.wan import wan_batch

STEPS = 30
VIDEOS = "num_frames > 1"


class TinyStdit(nn.Module):
    """Open-Sora's blocks with one attention for all positions: self-attention, cross-attention to tokens, and an MLP.

    Texts are handled as in Open-Sora's STDiT3: a dropped one becomes the null of the checkpoint, under the caption's mask.
    """

    WIDTH = 32

    def __init__(self, channels: int, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.y_embedding = nn.Parameter(torch.randn(max_tokens, text_width) / text_width**0.5)
        self.embed_x, self.embed_y = nn.Linear(channels, self.WIDTH), nn.Linear(text_width, self.WIDTH)
        self.embed_t, self.embed_size = nn.Linear(1, self.WIDTH), nn.Linear(4, self.WIDTH)
        self.attention = nn.MultiheadAttention(self.WIDTH, 4, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(self.WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(self.WIDTH, 64), nn.GELU(), nn.Linear(64, channels))

    def forward(self, x_BCthw: Tensor, t_B: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The predicted velocity, [B,C,t,h,w]."""
        dropped_B = inputs["text_dropped"]
        y_BLD = inputs["y"][:, 0].float()
        y_BLD = torch.where(dropped_B[:, None, None], self.y_embedding[: y_BLD.shape[1]], y_BLD)
        sizes_B4 = torch.stack([inputs[name].float() for name in ("fps", "height", "width", "num_frames")], dim=1) / 100
        _, _, t, h, w = x_BCthw.shape
        hidden = self.embed_x(rearrange(x_BCthw, "b c t h w -> b (t h w) c"))
        hidden = hidden + (self.embed_t(t_B[:, None]) + self.embed_size(sizes_B4))[:, None]
        hidden = hidden + self.attention(hidden, hidden, hidden)[0]
        y = self.embed_y(y_BLD)
        hidden = hidden + self.cross_attention(hidden, y, y, key_padding_mask=inputs["mask"] == 0)[0]
        return rearrange(self.mlp(hidden), "b (t h w) c -> b c t h w", t=t, h=h, w=w)


def train(clean_BCthw: Tensor, model: nn.Module, predict: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """Train by rectified flow with the same noise in every step. Returns the losses."""
    noise, t_B = torch.randn_like(clean_BCthw), torch.rand(len(clean_BCthw))
    t = t_B[:, None, None, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        velocity = predict((1 - t) * clean_BCthw + t * noise, t_B)
        loss = nn.functional.mse_loss(velocity, noise - clean_BCthw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_wan(output: str) -> list[float]:
    """Train a tiny Wan transformer of diffusers."""
    from diffusers import WanTransformer3DModel

    data = LatentDataset(output, where=VIDEOS, text="t5")
    batch = wan_batch(next(iter(data.batches(4, text_dropout=0.2, rank=0, world_size=1))), dtype=torch.float32)
    latents, context = batch["latents"], batch["context"]
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        text_dim=context.shape[2],
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )

    def predict(x_BCthw: Tensor, t_B: Tensor) -> Tensor:
        velocity: Tensor = model(
            hidden_states=x_BCthw, timestep=t_B * 1000, encoder_hidden_states=context, return_dict=False
        )[0]
        return velocity

    return train(latents, model, predict)


def train_open_sora(output: str) -> list[float]:
    """Train a model whose null is in its checkpoint, as Open-Sora's is."""
    data = LatentDataset(output, where=VIDEOS, text="t5")
    assert data.text is not None
    data.text = dataclasses.replace(data.text, null_row=NO_ROW)
    batch = next(iter(data.batches(8, text_dropout=0.5, rank=0, world_size=1)))
    inputs = open_sora_batch(batch, dtype=torch.float32)
    assert 0 < int(inputs["text_dropped"].sum()) < 8, "both kinds are trained"
    video = inputs["video"]
    model = TinyStdit(video.shape[1], inputs["y"].shape[3], data.text.main.max_tokens)
    losses = train(video, model, lambda x, t: model(x, t, inputs))
    assert model.y_embedding.grad is not None and model.y_embedding.grad.any(), "the null is trained"
    return losses


def main() -> None:
    """Print the losses."""
    sys.modules["transformers"] = None  # type: ignore[assignment]  # as on a machine that does not have it
    torch.manual_seed(0)
    print(json.dumps({"wan": train_wan(sys.argv[1]), "open_sora": train_open_sora(sys.argv[1])}))


if __name__ == "__main__":
    main()

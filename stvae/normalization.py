"""The one formula between stored latents and the input of a transformer: ``(raw - shift) * scale``."""

from __future__ import annotations

import torch
from torch import Tensor

from stvae.card import Card


def normalize(latents_BCthw: Tensor, card: Card) -> Tensor:
    """Turn raw latents into normalized ones. The dtype is the input's or float32, whichever is wider."""
    shift, scale = _statistics(latents_BCthw, card)
    return (latents_BCthw - shift) * scale


def normalize_(latents_BCthw: Tensor, card: Card) -> Tensor:
    """Do the same as ``normalize`` in place. The latents must be float32."""
    shift, scale = _statistics(latents_BCthw, card)
    return latents_BCthw.sub_(shift).mul_(scale)


def denormalize(latents_BCthw: Tensor, card: Card) -> Tensor:
    """Turn normalized latents back into raw ones."""
    shift, scale = _statistics(latents_BCthw, card)
    return latents_BCthw / scale + shift


def _statistics(latents_BCthw: Tensor, card: Card) -> tuple[Tensor, Tensor]:
    """Return shift and scale as [C,1,1,1], or as [C,t,1,1] if the VAE has one value per latent frame."""
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=latents_BCthw.device).view(card.latent_channels, -1, 1, 1)
        for values in card.statistics(latents_BCthw.shape[-3])
    )
    return shift, scale

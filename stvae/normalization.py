"""The one formula between stored latents and the input of a transformer: ``(raw - shift) * scale``."""

from __future__ import annotations

import torch
from torch import Tensor

from stvae.card import Card


def normalize(latents_BCthw: Tensor, card: Card) -> Tensor:
    """Turn raw latents into normalized ones. The dtype is the input's or float32, whichever is wider."""
    shift, scale = statistics(card, latents_BCthw.shape[-3], latents_BCthw.device)
    return (latents_BCthw - shift) * scale


def normalize_(latents_BCthw: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Do the same as ``normalize`` in place. The latents must be float32; ``statistics`` gives shift and scale."""
    return latents_BCthw.sub_(shift).mul_(scale)


def denormalize(latents_BCthw: Tensor, card: Card) -> Tensor:
    """Turn normalized latents back into raw ones."""
    shift, scale = statistics(card, latents_BCthw.shape[-3], latents_BCthw.device)
    return latents_BCthw / scale + shift


def statistics(card: Card, latent_t: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return shift and scale as float32 [C,1,1,1], or as [C,t,1,1] if the VAE has one value per latent frame."""
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=device).view(card.latent_channels, -1, 1, 1)
        for values in card.statistics(latent_t)
    )
    return shift, scale

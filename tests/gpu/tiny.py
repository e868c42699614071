"""Tiny VAEs of every class, sizes that fit them, and random clips. The same in every process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stvae.geometry import Geometry, SizeRule
from tests.support import tiny_vaes
from tests.support.golden import TINY

OPEN_SORA = "Open-Sora 1.2"
NAMES = (OPEN_SORA, *tiny_vaes.CONFIGS)
"""Names of the tiny VAEs: Open-Sora's golden weights, then every class of diffusers with random weights."""

LARGE = 20
"""Smallest size of an axis, in frames or pixels, from which on a VAE is not given more than its smallest size."""


def folder_of(name: str, parent: Path) -> Path:
    """The checkpoint folder of a tiny VAE, which is written below ``parent`` unless it is there."""
    if name == OPEN_SORA:
        return TINY
    folder = parent / name.replace(" ", "-")
    return folder if (folder / "config.json").exists() else tiny_vaes.save(name, folder)


def small_size(geometry: Geometry) -> tuple[int, int, int]:
    """A small size (T, H, W) that fits, with more than one latent frame and an unequal number of rows and columns."""
    return _nth(geometry.frames, 1), _nth(geometry.height, 1), _nth(geometry.width, 2)


def random_clips(size: tuple[int, int, int], count: int = 1, seed: int = 0) -> Tensor:
    """Clips of random pixels, uint8 (count, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def _nth(rule: SizeRule, number: int) -> int:
    """The n-th size that fits, or the first one if that is large already."""
    size = rule.start if rule.start >= LARGE else rule.start + rule.step * number
    return size if rule.largest is None else min(size, rule.largest)

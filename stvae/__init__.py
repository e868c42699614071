"""Spatio-temporal VAEs, which turn video into latents and back. Importing this package does not import torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvae.card import Card, read_card

if TYPE_CHECKING:
    from stvae.vae import VAE

__all__ = ["Card", "gc_paused", "load_vae", "read_card"]


def load_vae(vae: str | Path, **options: Any) -> VAE:
    """Load a VAE by name, path or URL. See ``stvae.vae.load_vae`` for the options."""
    with gc_paused():
        from stvae.vae import load_vae as load

    return load(vae, **options)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection inside the block. Meant for heavy imports.

    Collections take a quarter of the time that importing torch and diffusers needs, and they free nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

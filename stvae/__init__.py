"""Spatio-temporal VAEs ("VAEs") that turn video into latents and back. Importing this package imports no torch."""

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
    """The VAE of a checkpoint folder, given by name, path or URL; see ``stvae.vae.load_vae`` for the options."""
    with gc_paused():
        from stvae.vae import load_vae as load

    return load(vae, **options)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Imports without searches for garbage, which take a quarter of the time of torch's and diffusers' and find none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

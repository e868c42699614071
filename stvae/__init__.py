"""Spatio-temporal VAEs ("codecs") that turn video into latents and back. Importing this package imports no torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvae.card import Card, read_card

if TYPE_CHECKING:
    from stvae.codec import Codec

__all__ = ["Card", "load_codec", "read_card", "uncollected"]


def load_codec(codec: str | Path, **options: Any) -> Codec:
    """The codec of a checkpoint folder, given by name, path or URL; see ``stvae.codec.load_codec`` for the options."""
    with uncollected():
        from stvae.codec import load_codec as load

    return load(codec, **options)


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without searches for garbage, which take a quarter of the time of torch's and diffusers' and find none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

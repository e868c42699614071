"""The table of encoder families: which one a folder holds, how its captions are rendered, how its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.text.encoder import EncoderOptions, TextEncoder, TextRenderer
from pipeline.text.encoders.demo import DemoRenderer, load_demo


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One row of the table. Neither ``recognizes`` nor ``open`` imports torch or reads weights into memory."""

    name: str
    recognizes: Callable[[str], bool]
    """Tells from the files of a folder (or from the name ``demo``) if this family's models are in it."""
    open: Callable[[str, EncoderOptions], TextRenderer]
    """Opens the tokenizers and makes the card. ConfigError if the folder cannot be used."""
    load: Callable[[str, EncoderOptions, str, str], TextEncoder]
    """Loads the weights: folder, options, device, compute type."""


FAMILIES: tuple[Family, ...] = (
    Family(
        name="demo",
        recognizes=lambda folder: folder == "demo",
        open=lambda folder, options: DemoRenderer(),
        load=lambda folder, options, device, dtype: load_demo(device, dtype),
    ),
)


def open_renderer(folder: str, options: EncoderOptions) -> TextRenderer:
    """The card and the text handling of the encoder in a folder, without weights."""
    return _family(folder, options).open(folder, options)


def load_text_encoder(folder: str, options: EncoderOptions, device: str, compute_dtype: str) -> TextEncoder:
    """The encoder in a folder, with its weights on ``device``."""
    return _family(folder, options).load(folder, options, device, compute_dtype)


def _family(folder: str, options: EncoderOptions) -> Family:
    """The family that was asked for, or the only one whose models the folder has. ConfigError lists the families."""
    names = ", ".join(family.name for family in FAMILIES)
    found = [f for f in FAMILIES if (f.name == options.family if options.family else f.recognizes(folder))]
    if len(found) == 1:
        return found[0]
    if options.family:
        raise ConfigError(f"there is no family '{options.family}' of text encoders; there are {names}")
    if found:
        fitting = ", ".join(family.name for family in found)
        raise ConfigError(f"the text encoder in '{folder}' may be one of several: give --family {fitting}")
    raise ConfigError(f"the folder '{folder}' has no text encoder that this program knows; it knows {names}")

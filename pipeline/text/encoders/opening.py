"""Opens a text encoder: ``open_renderer`` without weights, for the driver, and ``load_text_encoder`` with them."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.text.encoder import EncoderOptions, TextEncoder, TextRenderer
from pipeline.text.encoders.demo import DemoRenderer, load_demo
from pipeline.text.encoders.folders import open_folder
from pipeline.text.encoders.renderer import FamilyRenderer

DEMO = "demo"
"""Name of the tiny encoder that needs no folder."""


def open_renderer(encoder: str, options: EncoderOptions) -> TextRenderer:
    """The card and the text handling of an encoder, given by path or URL of its folder. Imports no torch.

    ConfigError if the folder has no encoder, WeightsError if its files are damaged.
    """
    if encoder == DEMO:
        given = {"--family": options.family, "--max-tokens": options.max_tokens, "--connector": options.connector}
        if useless := [flag for flag, value in given.items() if value is not None]:
            raise ConfigError(f"the encoder '{DEMO}' has no choice of {' or '.join(useless)}; leave the flag out")
        return DemoRenderer()
    return FamilyRenderer(open_folder(encoder, options), large=options.large)


def load_text_encoder(encoder: str, options: EncoderOptions, device: str, compute_dtype: str) -> TextEncoder:
    """An encoder with its weights on a device. Fails as ``open_renderer`` does, and if the weights do not fit."""
    if encoder == DEMO:
        return load_demo(device, compute_dtype)
    from pipeline.text.encoders.encoder import FamilyEncoder

    return FamilyEncoder(open_folder(encoder, options), large=options.large, device=device, compute_dtype=compute_dtype)

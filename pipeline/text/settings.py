"""Settings that all text encoders of a job share."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.environment import describe_environment
from pipeline.output.layers.known_layers import layer_store
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.recipe import Run
from pipeline.storage.store import Store
from pipeline.text.encoder import EncoderOptions

PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "ftfy", "beautifulsoup4", "numpy", "pyarrow")
"""Packages whose version may change the bytes of a text layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSettings:
    """Everything an encoder of strings is made from. Ray sends it to the encoders' processes."""

    recipe: TextRecipe
    run: Run
    """``output`` is that of the clips, whose layer is written. Sources and VAE are not used."""
    layer: str
    """Name of the layer."""
    encoder: str
    """Folder of the encoder, or ``demo``."""
    options: EncoderOptions
    job: str
    """Random name of the job, in the records of its attempts."""

    def open_layer(self) -> Store:
        """The layer's own folder."""
        return layer_store(Store(self.run.output, single_writer=self.run.single_writer), self.layer)


def describe_text_environment(run: Run, device: str) -> dict[str, str]:
    """Describe what can change the last bits of an embedding besides the recipe."""
    return describe_environment(run, device, PACKAGES)

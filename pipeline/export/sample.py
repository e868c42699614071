"""One sample as export targets get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.loader.text.reading import EmbeddedArray
from stvae.card import Card
from stvae.normalization import normalize

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedSample:
    """One sample as every target gets it."""

    id: str
    """Name of the exported sample: the id of the latents, with the number of the caption if each caption is exported."""
    stored_Cthw: Floats
    """The stored latents, raw: the posterior mean ``[C,t,h,w]``, or mean and log-variance ``[2C,t,h,w]``."""
    card: Card = field(repr=False)
    caption: str | None
    columns: dict[str, Any]
    """Values of ``exported_columns``; None where a value is missing."""
    text: Mapping[str, EmbeddedArray] = field(default_factory=dict)
    """The caption's embedding by the names of its arrays. Empty if no text layer is exported."""

    def raw_mean(self) -> Floats:
        """Return the raw posterior mean ``[C,t,h,w]``."""
        return self.stored_Cthw[: self.card.latent_channels]

    def normalized_mean(self) -> Floats:
        """Return the posterior mean as the transformer takes it, ``(raw - shift) * scale``, as the loader gives it."""
        return self._normalized(self.raw_mean())

    def main_text(self) -> EmbeddedArray:
        """Return the main array of the embedding."""
        return next(iter(self.text.values()))

    def _normalized(self, raw_Cthw: Floats) -> Floats:
        values: Floats = normalize(torch.from_numpy(raw_Cthw)[None], self.card)[0].numpy()
        return values

"""LTX-2: from all hidden states of Gemma to embeddings before or after the connector.

Shape suffixes: B strings, L positions, D values per hidden state, S hidden states, F = D * S, W values per embedding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors, per_layer_masked_mean_norm, per_token_rms_norm
from torch import Tensor

from stvae.checkpoints.bounded_build import build_bounded
from stvae.checkpoints.files import read_json
from stvae.weights import load_weights, read_headers


class Projection:
    """The projection of a connector's checkpoint, and the connector behind it."""

    def __init__(self, folder: Path, device: str, compute_dtype: torch.dtype) -> None:
        """Load the checkpoint. WeightsError if it is damaged."""
        name = f"'{folder / 'config.json'}'"
        config = read_json(folder / "config.json")
        with torch.device("meta"):
            model: Any = build_bounded(lambda: LTX2TextConnectors.from_config(config), len(read_headers(folder)), name)
        load_weights(model, folder)
        self._model = model.eval().requires_grad_(False).to(device, compute_dtype)

    def features(self, states_BLF: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """The embeddings before the connector ``[B,L,W]``, as LTX-2's trainer stores them.

        LTX-2.3 has a projection for video and one for audio; LTX-2 has one for both. Padding is on the left.
        """
        # Shapes:    (B, L, D * S) -> (B, L, D, S) -> normalized (B, L, D * S) -> (B, L, W).
        # Invariant: a string's embeddings do not depend on padding or on other strings: sums go over its tokens only.
        # Example:   Gemma-3-12B has D = 3840 and S = 49, so that 188160 values become W = 3840.
        config = self._model.config
        states_BLDS = states_BLF.unflatten(2, (config.caption_channels, -1))
        if not config.per_modality_projections:
            normalized_BLF = per_layer_masked_mean_norm(states_BLDS, mask_BL.sum(dim=1), states_BLF.device, "left")
            return {"text": self._model.text_proj_in(normalized_BLF)}
        normalized_BLF = per_token_rms_norm(states_BLDS).flatten(2) * mask_BL[:, :, None]
        return {
            name: getattr(self._model, f"{name}_text_proj_in")(
                normalized_BLF * math.sqrt(width / config.caption_channels)
            )
            for name, width in (("video", config.video_hidden_dim), ("audio", config.audio_hidden_dim))
        }

    def connect(self, states_BLF: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """The embeddings after the connector ``[B,L,W]``. It fills padding with its registers, so that all rows count."""
        video_BLW, audio_BLW, _ = self._model(states_BLF, mask_BL, padding_side="left")
        return {"video": video_BLW, "audio": audio_BLW}

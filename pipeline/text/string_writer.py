"""One shard of a text layer: the embeddings of a unit's strings, and the unit metadata whose appearance commits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import Reject, Rejected
from pipeline.output.layers.text_layer import TextLayer
from pipeline.output.layers.text_rows import ID, ORDER, column, text_schema
from pipeline.output.rows import Row
from pipeline.output.serialization import pack_latent
from pipeline.output.shard_writer import UnitWriter
from pipeline.sources.units import Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.text.encoder import EmbeddedText, TokenizedText

TENSOR = "embedding"
"""Name of the tensor in every file of an array."""


class StringWriter(UnitWriter):
    """Collects the embeddings and rejects of a unit's strings."""

    def __init__(self, path: Path, unit: Unit, layer: TextLayer) -> None:
        super().__init__(path, unit, text_schema(layer.card), ORDER, place=column(layer.card.arrays[0], "offset"))
        self._layer = layer

    def add_string(self, id: str, tokens: TokenizedText | None, arrays: EmbeddedText, encode_path: str) -> None:
        """Store the arrays of a string, or reject it if one of them is not finite. ``tokens``: None for a null row."""
        card, row = self._layer.card, self._row(id, tokens)
        try:
            packed = [pack_latent(arrays[array.name].values, self._layer.recipe.dtype, TENSOR) for array in card.arrays]
        except Rejected as rejected:
            self._reject(row, rejected.reject)
            return
        for array, part in zip(card.arrays, packed, strict=True):
            row |= self._add_array(f"{id}.{array.name}", column(array, ""), part)
            row[column(array, "rows")] = 1 if array.form == "vector" else len(part.stored)
            row[column(array, "length")] = arrays[array.name].length
        self._add(row | {"encode_path": encode_path, "dtype": self._layer.recipe.dtype})
        self.counts.samples += 1
        self.counts.frames += int(np.sum([array.length for array in arrays.values()]))
        failpoint(Failpoint.SAMPLE_WRITTEN)

    def add_reject(self, id: str, tokens: TokenizedText, reject: Reject) -> None:
        """Record a string that could not be embedded."""
        self._reject(self._row(id, tokens), reject)

    def _row(self, id: str, tokens: TokenizedText | None) -> Row:
        row: Row = dict.fromkeys(self._schema.names)
        row |= {ID: id, "recipe": self._layer.recipe.fingerprint}
        if tokens is not None:
            row |= {"num_tokens": tokens.num_tokens, "truncated": tokens.truncated}
        return row

"""Reads embeddings one by one, outside of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import torch

from pipeline.errors import IntegrityError
from pipeline.loader.text.layer import TextLayer
from pipeline.output.layers.text_card import TextArray
from pipeline.output.purges.deleted_shards import read_shard
from pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedArray:
    """One array of a caption's embedding, such as T5's rows or CLIP's pooled vector."""

    facts: TextArray
    """The array's facts from the card of the layer."""
    values: torch.Tensor
    """``[rows,D]``, or ``[D]`` for a vector, in the type of the layer."""
    length: int
    """Number of rows that are tokens. The others are padding that the layer keeps."""

    def tokens(self) -> torch.Tensor:
        """Return the rows without padding ``[length,D]``."""
        padding = len(self.values) - self.length
        return self.values[padding:] if self.facts.padding_side == "left" else self.values[: self.length]

    def padded(self, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows ``[length,D]``, with zeros on the family's side, and the mask of the tokens, bool ``[length]``.

        length: by default the number of tokens of the longest string that the encoder takes.
        """
        wanted = self.facts.max_tokens if length is None else length
        missing = wanted - len(self.values)
        if missing < 0:
            raise ValueError(f"{len(self.values)} rows do not fit into {wanted}")
        is_left = self.facts.padding_side == "left"
        values = torch.nn.functional.pad(self.values, (0, 0, missing, 0) if is_left else (0, 0, 0, missing))
        positions = torch.arange(wanted)
        return values, positions >= wanted - self.length if is_left else positions < self.length


def read_texts(store: Store, layer: TextLayer, rows: Sequence[int]) -> list[dict[str, EmbeddedArray]]:
    """Read the arrays of some strings, with one request per shard. IntegrityError for bytes that are not as recorded."""
    texts: list[dict[str, EmbeddedArray]] = [{} for _ in rows]
    by_shard: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_shard.setdefault(int(layer.shard_codes[row]), []).append(place)
    for code, places in by_shard.items():
        wanted = [(place, array) for place in places for array in layer.card.arrays]
        ranges = [_range(layer, array, rows[place]) for place, array in wanted]
        shard = layer.shards[code]
        for (place, array), content in zip(wanted, read_shard(store, shard, ranges), strict=True):
            texts[place][array.name] = _array(layer, array, rows[place], content, f"{store.url}/{shard}")
    return texts


def _range(layer: TextLayer, array: TextArray, row: int) -> tuple[int, int]:
    places = layer.places[array.name]
    return int(places.offset[row]), int(places.nbytes[row])


def _array(layer: TextLayer, array: TextArray, row: int, content: bytes, shard: str) -> EmbeddedArray:
    places = layer.places[array.name]
    expected, got = int(places.checksum[row]), google_crc32c.value(content)
    if got != expected:
        raise IntegrityError(
            f"{shard}: the array '{array.name}' at byte {places.offset[row]} is damaged: crc32c {got}, expected {expected}; "
            "run jobs/verify_dataset.py to find all damaged texts"
        )
    size = (array.width,) if array.form == "vector" else (int(places.num_rows[row]), array.width)
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(getattr(torch, layer.dtype)).view(size)
    return EmbeddedArray(facts=array, values=values, length=int(places.length[row]))

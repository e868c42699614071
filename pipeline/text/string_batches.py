"""Batches of strings for an encoder: by length, so that little of a call is padding, and a function of a unit's strings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.text.encoder import TokenizedText


class PlannedString(NamedTuple):
    """A string that waits for the encoder."""

    id: str
    """Its text id."""
    tokens: TokenizedText
    padded_length: int
    batch_size: int
    """Number of rows of its batch. Calls with fewer strings have blank rows, since last bits depend on the number."""


def form_batches(
    ids: Sequence[str], tokens: Sequence[TokenizedText], recipe: TextRecipe
) -> Iterator[list[PlannedString]]:
    """Yield every string once, in batches of one padded length: the shortest strings first, those of one length by id."""
    by_length: dict[int, list[tuple[int, str, TokenizedText]]] = {}
    for id, text in zip(ids, tokens, strict=True):
        padded_length = recipe.lengths[bisect_left(recipe.lengths, text.length)]
        by_length.setdefault(padded_length, []).append((text.length, id, text))
    for padded_length in sorted(by_length):
        strings = sorted(by_length[padded_length], key=lambda string: string[:2])
        size = recipe.batch_size(padded_length)
        for start in range(0, len(strings), size):
            batch = strings[start : start + size]
            yield [PlannedString(id, text, padded_length, len(batch)) for _, id, text in batch]

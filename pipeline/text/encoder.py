"""The interface of text encoders: ``TextRenderer`` without weights, and ``TextEncoder`` with them.

A caption becomes an embedding in four steps:

    caption --TextHandling.variants--> captions as they are shown to the model, each with a weight
            --TextRenderer.render----> the strings for the tokenizers (template, a family's own cleaning); their text id
            --TextEncoder.tokenize---> token ids without padding
            --TextEncoder.encode-----> arrays, many strings at a time

The driver takes the first two steps, once per caption. Encoders take the others, once per distinct text id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.output.layers.text_card import TextCard


class Variant(NamedTuple):
    """One form in which a caption may be shown to the model."""

    caption: str
    weight: float
    """Probability with which training sees this form. Those of one caption add up to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """Settings beside the folder that decide which encoder is loaded and where it is cut."""

    family: str | None = None
    """Name of the family; None finds it from the folder's files."""
    max_tokens: int | None = None
    """Longest string in tokens; None takes the family's own length."""
    connector: str | None = None
    """Folder of a connector after which embeddings are taken; None takes them before it."""
    large: bool = False
    """Allow a family whose embeddings are too large to be sensible."""


class TextHandling(Protocol):
    """The treatment of a caption before it is rendered: cleaning, and texts from other columns. Pure and cheap."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the samples that ``variants`` reads, beside the caption."""
        ...

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Those of the columns that hold numbers."""
        ...

    def variants(self, caption: str, values: Mapping[str, Any]) -> Sequence[Variant]:
        """The forms of a caption, always in the same order. ``values``: the sample's values by name of the column."""
        ...


class TextRenderer(Protocol):
    """A family's own text handling. It has tokenizers at most, so the driver can hold it."""

    card: TextCard

    def render(self, caption: str) -> tuple[str, ...]:
        """The strings for the tokenizers, one per tokenizer, in a fixed order. An empty caption is a caption too."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedText:
    """A rendered string as token ids."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids per tokenizer, special tokens included, cut to the tokenizer's maximum, without padding."""
    num_tokens: int
    """Number of tokens of the main tokenizer before it was cut."""
    truncated: bool
    """True if any tokenizer cut the string."""

    @property
    def length(self) -> int:
        """Number of tokens that go through the main encoder. Batches are formed by it."""
        return len(self.ids[0])


class EmbeddedArray(NamedTuple):
    """One array of one string."""

    values: npt.NDArray[np.float32]
    """``[rows,width]``, or ``[width]`` for a vector. Rows are trimmed where the card says so, else all ``max_tokens``."""
    length: int
    """Number of rows that are tokens, which are the ones of the mask; equal to the number of rows where it is trimmed.
    1 for a vector. 0 is allowed: an encoder that had nothing to read."""


EmbeddedText = Mapping[str, EmbeddedArray]
"""The arrays of one string by name, one for each array of the card."""


class TextEncoder(TextRenderer, Protocol):
    """A family's encoders, with their weights. Deterministic: equal calls on equal devices give equal bytes."""

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[TokenizedText]:
        """Token ids of rendered strings. The result of a string does not depend on the others."""
        ...

    def encode(self, batch: Sequence[TokenizedText], padded_length: int) -> list[EmbeddedText]:
        """The arrays of each string of a batch, as float32 in memory of the host.

        ``padded_length`` is one of ``card.lengths``, and no string of the batch is longer. The main encoder gets ids
        padded to it, ``[len(batch), padded_length]``; other encoders pad to lengths of their own. Out of memory raises
        ``torch.OutOfMemoryError``, and the caller tries smaller batches.
        """
        ...

    def encode_null(self) -> EmbeddedText:
        """The null of a card whose ``null.kind`` is ``row``; never called for others."""
        ...

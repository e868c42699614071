"""The texts of a batch whose bytes are being read, and the memory that they are read into."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pipeline.loader.readers import Span
from pipeline.output.layers.text_card import TextArray


@dataclass(frozen=True, slots=True)
class ChosenText:
    """The text of one sample of a batch."""

    row: int
    """The string in the layer whose embedding is used."""
    mask_row: int
    """The string whose length the mask shows: that of the caption where a dropped one has no embedding of its own."""
    shown: str | None
    """The caption whose embedding it is; empty for a dropped one."""
    dropped: bool = False


@dataclass(slots=True)
class PendingArray:
    """One array of every text of a batch, which is being read."""

    array: TextArray
    tensor: Tensor
    """``[B,L,D]``, ``[B,D]`` for a vector, or ``[sum of L,D]`` if it is packed."""
    lengths: list[int]
    """Rows of each text in the tensor."""
    token_lengths: list[int]
    """Rows of each text that are tokens."""


@dataclass(slots=True)
class PendingTexts:
    """The texts of a batch, which are being read."""

    chosen: list[ChosenText]
    arrays: list[PendingArray] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    checks: list[tuple[int, str, memoryview]] = field(default_factory=list)
    """For each span: the text's place in the batch, the name of the array, and its memory."""
    padding: list[memoryview] = field(default_factory=list)
    """Parts of the tensors that no span fills, which are to be zero."""

    @property
    def captions(self) -> list[str | None]:
        """The captions whose embeddings these are."""
        return [text.shown for text in self.chosen]

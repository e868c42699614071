"""The card of a text layer: the facts of a text encoder and its arrays. Readers need nothing else of the encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import refuse_unknown_fields, refuse_unknown_words

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
"""Size of a value by the data type of stored embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArray:
    """One array that a string becomes. A family with two encoders has one for each."""

    name: str
    """Name of the array: a lowercase word. It is the suffix of its members in the shards, and a prefix of its columns."""
    form: Literal["tokens", "vector"]
    """``tokens``: a row of ``width`` values per token, ``[rows,width]``; ``vector``: one pooled vector, ``[width]``."""
    width: int
    max_tokens: int = 0
    """Largest number of rows; 0 for a vector."""
    trimmed: bool = True
    """True if rows end with the string's last token. False where padding positions carry information: all rows are kept."""
    padding_side: Literal["left", "right"] = "right"
    """Side on which readers pad the rows of shorter strings. Tokens lie at the other end, and so do the ones of a mask."""
    fixed_length: bool = False
    """True if the model takes ``max_tokens`` rows always; False if a batch may be as long as its longest string."""
    masked: bool = True
    """True if the model takes a mask that shows the tokens; False if it attends to every row, padding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Null:
    """The embedding that the model sees in place of a dropped caption."""

    kind: Literal["text", "row", "checkpoint"]
    """``text``: the embedding of ``text``. ``row``: an embedding that the encoder makes without a string, stored as a row
    of its own. ``checkpoint``: it is a part of the transformer's checkpoint, and the layer does not have it."""
    text: str = ""
    """The caption whose embedding is the null, as a user would write it; mostly empty."""
    note: str = ""
    """Where the null is, if it is in a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCard:
    """The facts of a text encoder, without its tensors."""

    family: str
    """Name of the family's row in the table of encoders."""
    encoder_sha256: str
    """Hash over the configurations and weights of all encoders, and of a connector if there is one."""
    tokenizer_sha256: str
    """Hash over the files of all tokenizers."""
    template: str = ""
    """Text around a caption, with ``{}`` in its place; empty if there is none."""
    cut: str = "last_hidden_state"
    """The place in the model at which embeddings are taken, in words."""
    arrays: tuple[TextArray, ...]
    """The arrays of a string, the main one first."""
    lengths: tuple[int, ...]
    """Lengths in tokens, in rising order, to which strings are padded before they go through the main encoder. The last
    one is the longest string that it takes."""
    null: Null

    @property
    def sha256(self) -> str:
        """Hash over everything that changes an embedding."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def array(self, name: str) -> TextArray:
        """The array of a name. KeyError if there is none."""
        return {array.name: array for array in self.arrays}[name]

    def row_bytes(self, dtype: str) -> int:
        """Size of the arrays of a string at full length."""
        values = sum(array.width * max(1, array.max_tokens) for array in self.arrays)
        return values * ITEM_BYTES[dtype]

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``dataset.json`` of the layer records."""
        return dataclasses.asdict(self) | {"arrays": [dataclasses.asdict(array) for array in self.arrays]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TextCard:
        """The card that ``to_json`` wrote. IntegrityError names fields and words that this program does not know."""
        arrays = tuple(_known(TextArray, array) for array in values["arrays"])
        null, lengths = _known(Null, values["null"]), tuple(values["lengths"])
        card: TextCard = _known(cls, values | {"arrays": arrays, "null": null, "lengths": lengths})
        return card


def _known(record_type: Any, values: dict[str, Any]) -> Any:
    """The record with these values. IntegrityError for a field, or for one of several words, that is not known."""
    what = f"the layer's {record_type.__name__}"
    refuse_unknown_fields(what, values, [field.name for field in dataclasses.fields(record_type)])
    refuse_unknown_words(what, values, record_type)
    return record_type(**values)

"""A text layer as the loader uses it: where the embedding of every string is, and which strings each sample has.

Everything is held in arrays, so that processes can map it and lookups take no time per sample of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.loader.samples import Samples
from pipeline.output.layers.text_card import TextArray, TextCard

EMPTY = ""
"""Name that stands for the empty caption in ``captions=``."""
NO_ROW = -1
"""In place of a row: the caption has no embedding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayPlaces:
    """Where one array of every string is. All arrays are ``[strings]``."""

    offset: npt.NDArray[np.int64]
    """First byte of the tensor in its shard."""
    nbytes: npt.NDArray[np.int64]
    num_rows: npt.NDArray[np.int32]
    """Number of stored rows; 1 for a vector."""
    length: npt.NDArray[np.int32]
    """Number of rows that are tokens."""
    checksum: npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionForms:
    """The forms of one caption of every sample, in the order of the output's index."""

    starts: npt.NDArray[np.int64]
    """``[samples + 1]``: sample ``i`` has the forms from ``starts[i]`` to ``starts[i + 1]``."""
    rows: npt.NDArray[np.int32]
    """``[forms]``: the string of each form."""
    elements: npt.NDArray[np.int32]
    """``[forms]``: for a list of captions, the element that the form belongs to; otherwise 0."""
    weights: npt.NDArray[np.float64]
    """``[forms]``: probability of each form among those of its caption."""

    shown: pa.Array
    """``[forms]``: the form as it is shown to the model; null where it is the caption itself."""

    def choose(self, sample: int, element: int, draw: float) -> int | None:
        """Return a form of an element of a sample's caption; None if it has none. draw: from 0 to 1."""
        first, stop = int(self.starts[sample]), int(self.starts[sample + 1])
        if stop - first == 1:  # most captions have one form
            return first if self.elements[first] == element else None
        forms = self._forms_of(sample, element)
        if not len(forms):
            return None
        weights = np.cumsum(self.weights[forms])
        position = int(np.searchsorted(weights, draw * weights[-1], side="right"))
        return int(forms[min(position, len(forms) - 1)])

    def likeliest(self, sample: int, element: int) -> int | None:
        """Return the likeliest form, the first one among equals; None if there is none."""
        forms = self._forms_of(sample, element)
        return int(forms[int(np.argmax(self.weights[forms]))]) if len(forms) else None

    def _forms_of(self, sample: int, element: int) -> npt.NDArray[np.int64]:
        start, stop = int(self.starts[sample]), int(self.starts[sample + 1])
        forms: npt.NDArray[np.int64] = start + np.flatnonzero(self.elements[start:stop] == element)
        return forms


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLayer:
    """A text layer of an output."""

    name: str
    card: TextCard
    dtype: str
    """Type of the stored embeddings."""
    shards: Sequence[str]
    """Paths of the shards from the root of the output."""
    shard_codes: npt.NDArray[np.uint32]
    """``[strings]``: each string's place in ``shards``."""
    places: Mapping[str, ArrayPlaces]
    """Where the arrays of the card are, by name."""
    captions: Mapping[str, CaptionForms]
    """The captions that the layer has embedded, by the name of their column."""
    empty_row: int
    """The string for an empty caption."""
    null_row: int
    """The string that stands for a dropped caption; ``NO_ROW`` if the transformer's checkpoint has it."""
    files: Any = field(default=None, repr=False, compare=False)
    """The files that other processes map; see ``text/shared_layer.py``."""

    @property
    def main(self) -> TextArray:
        """The main array of the card."""
        return self.card.arrays[0]


def check_text(layer: TextLayer, samples: Samples, names: Sequence[str]) -> None:
    """Raise ConfigError if captions of these names have no embeddings in the layer."""
    for name in filter(None, names):
        if name not in layer.captions:
            raise ConfigError(
                f"the text layer '{layer.name}' has no embeddings of '{name}'; it has "
                f"{', '.join(sorted(layer.captions))}. Run jobs/encode_text.py with --captions {name}"
            )
        starts = layer.captions[name].starts
        column = samples.table[name]
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        sizes = pc.list_value_length(column) if is_list else pc.binary_length(column)
        has_text = (pc.fill_null(sizes, 0).to_numpy() > 0)[samples.rows]
        without = np.flatnonzero(has_text & (starts[samples.rows] == starts[samples.rows + 1]))
        if len(without):
            example = samples.take(without[:1], ["id"])["id"][0]
            raise ConfigError(
                f"{len(without)} of {len(samples.rows)} samples have no embedding of '{name}' in the text layer "
                f"'{layer.name}', the first is {example}: run jobs/encode_text.py again, which embeds what is missing, or "
                "leave such samples out with where="
            )

"""Chooses the caption of each sample of an epoch, its form, and the samples whose caption is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.schedule.keys import derive_seed
from pipeline.loader.text.layer import EMPTY, NO_ROW, TextLayer
from pipeline.loader.text.pending import ChosenText

CAPTION = "caption"
DEFAULT_CAPTIONS = {CAPTION: 1.0}
LIST = "captions"
"""Column with the list of an item's captions, null where it has one or none."""


@dataclass(frozen=True, slots=True)
class ChosenCaption:
    """A caption of a sample."""

    name: str
    """The column that it is from; empty for an empty caption."""
    element: int
    """Its place in a list of captions; otherwise 0."""
    text: str | None
    """None if the sample has no caption."""
    is_of_list: bool = False


def choose_caption(rows: Mapping[str, Any], i: int, seed: int, captions: Mapping[str, float] | None) -> ChosenCaption:
    """Choose one of a sample's captions by weight.

    rows: columns of a batch, from which the sample is number ``i``. captions: weight of each text column;
    None for ``caption`` alone.
    """
    captions = DEFAULT_CAPTIONS if captions is None else captions
    options = {name: _captions(rows, i, name) for name in captions}
    names = [name for name, found in options.items() if found]
    if not names:
        return ChosenCaption(EMPTY, 0, None)
    if len(names) == 1 and not options[names[0]][0].is_of_list:
        return options[names[0]][0]  # the only choice: no random number is needed
    rng = np.random.default_rng(seed)
    weights = np.cumsum([captions[name] for name in names])
    found = options[names[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]]
    return found[int(rng.integers(len(found)))] if found[0].is_of_list else found[0]


def _captions(rows: Mapping[str, Any], i: int, name: str) -> list[ChosenCaption]:
    """Return the captions of a sample under a name: several for a list, none where there is none."""
    value = rows[name][i] if name else ""
    if name == LIST and value is None:  # null for samples with one caption
        name, value = CAPTION, rows[CAPTION][i]
    if isinstance(value, list):
        return [ChosenCaption(name, n, str(text), is_of_list=True) for n, text in enumerate(value) if text is not None]
    return [] if value is None else [ChosenCaption(name, 0, str(value))]


def choose_text(
    layer: TextLayer, caption: ChosenCaption, table_row: int, seed: int, dropout: float, sample: str
) -> ChosenText:
    """Choose the embedding of a caption: one of its forms, or the null if the caption is dropped.

    table_row: the sample's row in the output's index. seed: follows from the epoch and the sample. sample: for messages.
    """
    row, shown = layer.empty_row, caption.text
    if caption.text:
        forms = layer.captions[caption.name]
        form = forms.choose(table_row, caption.element, _draw(seed, "form"))
        if form is None:
            raise ConfigError(
                f"the text layer '{layer.name}' has no embedding of '{caption.name}' of sample {sample}: run "
                "jobs/encode_text.py again, which embeds what is missing, or leave such samples out with where="
            )
        row, shown = int(forms.rows[form]), forms.shown[form].as_py() or caption.text
    if not dropout or _draw(seed, "dropout") >= dropout:
        return ChosenText(row, row, shown)
    return ChosenText(layer.null_row, row if layer.null_row == NO_ROW else layer.null_row, "", dropped=True)


def _draw(seed: int, purpose: str) -> float:
    """Return a number from 0 to 1, evenly distributed."""
    return float(derive_seed(seed, purpose) >> np.uint64(11)) / (1 << 53)

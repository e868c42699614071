"""Counts of captions, and notes where there are none: what lies beside the items and may hold captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.progress.formatting import number
from pipeline.sources.formats import format_of
from pipeline.sources.sidecars import CAPTION_FIELDS, NAN_TO_NULL
from pipeline.sources.units import Source

MAX_HINTS = 3
MAX_NAMES = 6
"""Number of columns or fields that a hint names."""


def count_captions(captions: pa.ChunkedArray) -> int:
    """Return the number of captions that are neither null nor empty."""
    return pc.sum(pc.not_equal(captions, "")).as_py() or 0


def no_captions_note(sources: Sequence[Source], hints: Iterable[str]) -> str:
    """Say that there are no captions, and where there may be some. ``hints``: those of ``metadata_hints``."""
    found = [*hints, *(hint for source in sources if (hint := format_of(source).caption_hint(source)))]
    shown = list(dict.fromkeys(found))[:MAX_HINTS]
    return "no sample has a caption" + (f": {'; '.join(shown)}" if shown else ", and none was found beside the items")


def metadata_hints(metadata: Iterable[dict[str, Any]]) -> list[str]:
    """Return hints at columns of manifests, and at fields of the items' JSON, that hold text of several words.

    ``metadata``: user columns of a few items, by column name.
    """
    columns: dict[str, None] = {}
    fields: dict[str, None] = {}
    for row in metadata:
        columns |= dict.fromkeys(name.removeprefix("meta_") for name in text_names(row) if name != "meta")
        if row.get("meta"):
            fields |= dict.fromkeys(text_names(json.loads(row["meta"])))
    hints = []
    if columns:
        hints.append(f"--caption-column takes one of the columns that hold text ({_listed(columns)}), in a new output")
    if fields:
        hints.append(
            f"the JSON beside the items has text in {_listed(fields)}; a caption is a text or a list of texts in one of "
            f"{', '.join(CAPTION_FIELDS)}"
        )
    return hints


def text_names(values: dict[str, Any]) -> list[str]:
    """Return the names of values that are text of several words, or lists of such texts."""
    return [name for name, value in values.items() if _is_sentence(value)]


def metadata_note(name: str, count: int) -> str:
    """Say what the column ``note`` of some samples means."""
    meaning = {NAN_TO_NULL: "numbers in JSON or in a manifest that are NaN, infinite or too large became null"}.get(
        name, name
    )
    return f"{meaning} ({number(count, 'sample')})"


def _is_sentence(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_sentence, value.values()))
    if isinstance(value, list):
        return any(map(_is_sentence, value))
    return isinstance(value, str) and len(value.split()) > 1


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MAX_NAMES} more" if len(every) > MAX_NAMES else ""
    return ", ".join(every[:MAX_NAMES]) + more

"""Which captions of a sample are exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.export.options import EACH, ExportOptions
from pipeline.loader import LatentDataset

CAPTION = "caption"
CAPTIONS = "captions"
"""Column with the list of an item's captions, null where it has one or none."""


def check_caption(data: LatentDataset, options: ExportOptions) -> None:
    """Raise ConfigError if the output has no column with the captions that the options name."""
    if options.caption == EACH:
        return
    names = data.samples.column_names
    if options.caption not in names or options.caption == CAPTIONS:
        textual = [CAPTION, *(name for name in names if name.startswith("meta_"))]
        raise ConfigError(
            f"--caption {options.caption}: the output has no such column of texts; choose 'each' or one of "
            f"{', '.join(textual)}"
        )


def caption_columns(options: ExportOptions) -> list[str]:
    """Return the columns that ``captions_of`` reads."""
    return [CAPTION, CAPTIONS] if options.caption == EACH else [CAPTIONS, options.caption]


def captions_of(columns: Mapping[str, Any], options: ExportOptions) -> list[str]:
    """Return the captions with which a sample is exported, one exported sample for each. None means: leave it out."""
    captions = (columns[CAPTIONS] or [columns[CAPTION]]) if options.caption == EACH else [columns[options.caption]]
    present = [str(caption) for caption in captions if caption is not None and str(caption).strip()]
    return present or ([""] if options.uncaptioned else [])


def captions_left(columns: Mapping[str, Any], options: ExportOptions) -> int:
    """Return how many captions of an exported sample are not exported."""
    every = {caption for caption in (*(columns[CAPTIONS] or ()), columns.get(CAPTION)) if caption}
    return len(every - set(captions_of(columns, options)))

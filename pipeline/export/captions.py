"""Which captions of a sample are exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.export.options import EACH, ExportOptions
from pipeline.loader import LatentDataset
from pipeline.loader.text.captions import CAPTION, ChosenCaption
from pipeline.loader.text.captions import LIST as CAPTIONS
from pipeline.loader.text.layer import check_text


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


def check_embeddings(data: LatentDataset, options: ExportOptions) -> None:
    """Raise ConfigError if captions that are exported have no embedding in the text layer."""
    if data.text is None:
        return
    wanted = [options.caption] if options.caption != EACH else [CAPTION]
    if options.caption == EACH and pc.any(pc.is_valid(data.samples.columns([CAPTIONS])[CAPTIONS])).as_py():
        wanted.append(CAPTIONS)
    check_text(data.text, data.samples, wanted)


def caption_columns(options: ExportOptions) -> list[str]:
    """Return the columns that ``captions_of`` reads."""
    return [CAPTION, CAPTIONS] if options.caption == EACH else [CAPTIONS, options.caption]


def captions_of(columns: Mapping[str, Any], options: ExportOptions) -> list[ChosenCaption]:
    """Return the captions with which a sample is exported, one exported sample for each. Without one it is left out."""
    is_list = options.caption == EACH and bool(columns[CAPTIONS])
    name = CAPTIONS if is_list else CAPTION if options.caption == EACH else options.caption
    texts = columns[CAPTIONS] if is_list else [columns[name]]
    captions = [
        ChosenCaption(name, n, str(text)) for n, text in enumerate(texts) if text is not None and str(text).strip()
    ]
    return captions or ([ChosenCaption("", 0, "")] if options.uncaptioned else [])


def captions_left(columns: Mapping[str, Any], options: ExportOptions) -> int:
    """Return how many captions of an exported sample are not exported."""
    every = {caption for caption in (*(columns[CAPTIONS] or ()), columns.get(CAPTION)) if caption}
    return len(every - {caption.text for caption in captions_of(columns, options)})

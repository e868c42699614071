"""Sentences about what an import does not know, for its summary."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from pipeline.imports.registry import IMPORT_FORMATS
from pipeline.imports.settings import ImportSettings
from pipeline.output.index import Index
from pipeline.progress.formatting import number
from pipeline.storage.parquet import read_parquet, value_counts
from pipeline.storage.store import Store

COUNTED = ("caption", "fps", "src_width")
"""Columns that a source may lack."""
NEVER_KNOWN = "start_s, end_s, frame_stride, crop_* and the other src_* columns"


def import_notes(store: Store, index: Index, settings: ImportSettings) -> list[str]:
    """Return sentences about the VAE, the form of the latents, and columns that are empty."""
    card, recipe = settings.card, settings.recipe
    import_format = IMPORT_FORMATS[settings.source_format]
    form = "raw and stored as they are" if recipe.imported_latents == "raw" else "normalized and made raw again"
    lacking: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    for path in index.samples:
        table = read_parquet(store.get(path), ["num_frames", "store", *COUNTED])
        stores.update(value_counts(table["store"]))
        lacking["caption"] += table["caption"].null_count
        lacking["src_width"] += table["src_width"].null_count
        lacking["fps"] += table.filter(pc.greater(table["num_frames"], 1))["fps"].null_count
    notes = [
        f"{card.class_name} {card.sha256[:16]} is declared to have made these latents; nothing verifies that",
        f"in {import_format.name} its latents are {form}; encoding and imports of another recipe do not extend this output",
        f"text embeddings are not imported: jobs/encode_text.py embeds the captions again; empty: {NEVER_KNOWN}",
    ]
    unknown = [f"{name} of {number(count, 'sample')}" for name, count in lacking.items() if count]
    if unknown:
        notes.append(f"the source does not say, and these columns are empty: {', '.join(unknown)}")
    if stores and set(stores) != {recipe.store}:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(stores.items()))
        notes.append(f"the column 'store' says which latents are samples of the posterior, not its mean: {counts}")
    return notes

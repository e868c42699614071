"""``README.md`` of an output: a dataset card, with which ``datasets.load_dataset(folder)`` reads the index as tables.

The card follows from the newest index, the newest edits and the recipe, so every job writes the same bytes until the output
grows or is edited. Removed samples are left out by a filter in it. It is the only file of an output that people may edit: a
card without the line ``MARK`` is theirs, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.output.edits.edits import newest_edits, removed_ids
from pipeline.output.index import Index, newest_index
from pipeline.recipe import Recipe
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store

PATH = "README.md"
MARK = "# Latentmill updates this file when the output grows. Delete this line to keep your own text."
INT8_NOTE = (
    "Latents are int8: multiply `latent.npy` by `latent_scale.npy` of the same sample. The loader does so itself."
)
MAX_REMOVED = 50_000
"""Number of removed samples beyond which a card has no filter. Each takes 24 bytes."""
MAX_BYTES = 4 << 20
"""Size beyond which a file is not a card of ours. A pattern in a card has 50 bytes, and stands for the parts of a range."""


def write_card(store: Store, recipe: Recipe, index: Index) -> str | None:
    """Write the card of an output that has this index or a newer one, unless it is there already.

    Returns a sentence if the card that is there was edited and therefore kept.
    """
    index = newest_index(store) or index
    content = render_card(recipe, index, removed_ids(store, index.samples, newest_edits(store), MAX_REMOVED))
    size_bytes = store.size(PATH)
    present = store.get(PATH) if size_bytes is not None and size_bytes <= MAX_BYTES else b""
    if size_bytes is not None and MARK.encode() not in present:
        return f"{PATH} was not updated, because it lacks the line '{MARK}'"
    if present != content:
        store.put(PATH, content)
        failpoint(Failpoint.CARD_WRITTEN)
    return None


def render_card(recipe: Recipe, index: Index, removed: Sequence[str] | None = ()) -> bytes:
    """The card of an index: YAML with a configuration for each kind of rows, then a text for people.

    removed: ids of the samples of the index that are removed; None if they are too many for a filter.
    """
    tables = {
        "samples": (index.samples, index.num_samples - len(removed or ())),
        "rejects": (index.rejects, index.num_rejects),
        "skips": (index.skips, index.num_skips),
    }
    lines = ["---", MARK, "configs:"]
    for name, (paths, _) in tables.items():
        if paths:
            lines += [f"- config_name: {name}", *(["  default: true"] if name == "samples" else [])]
            patterns = dict.fromkeys(f"{path.rpartition('/')[0]}/{name}-*.parquet" for path in paths)
            lines += ["  data_files:", "  - split: train", "    path:", *(f'    - "{pattern}"' for pattern in patterns)]
            if name == "samples" and removed:
                lines.append(f"  filters: {json.dumps([['id', 'not in', list(removed)]])}")
    if not any(paths for paths, _ in tables.values()):
        lines[-1] = "configs: []"
    counts = ", ".join(f"{name} {count:,}" for name, (_, count) in tables.items())
    imported = recipe.origin == "import"
    buckets = "the sizes of the imported latents" if imported else ", ".join(str(bucket) for bucket in recipe.buckets)
    made = "that Latentmill imported from another program's files" if imported else "made by Latentmill"
    lines += [
        "---",
        "",
        "# Video latents",
        "",
        f"Latents of a video VAE, {made} with recipe `{recipe.fingerprint}`.",
        f"Rows: {counts}. Buckets: {buckets}.",
        "`dataset.json` has the VAE and the whole recipe.",
        *([INT8_NOTE] if recipe.dtype == "int8" else []),
        *(_removal_note(removed)),
        "",
        "The tables of this card are the index. A row of `samples` names the shard and the bytes of its latents:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("path/of/this/folder", "samples", split="train")',
        "```",
        "",
        "To train from the latents:",
        "",
        "```python",
        "from pipeline.loader import LatentDataset",
        "",
        'for batch in LatentDataset("path/of/this/folder").batches(batch_size=8):',
        '    latents = batch["latents"]',
        "```",
        "",
    ]
    return "\n".join(lines).encode()


def _removal_note(removed: Sequence[str] | None) -> list[str]:
    """Lines about removed samples, whose rows and bytes stay until they are purged."""
    if removed is None:
        return [
            f"**More than {MAX_REMOVED:,} samples are removed, and the table of samples still has their rows.** The "
            'loader\'s `LatentDataset("path/of/this/folder").columns` is the table without them.'
        ]
    if not removed:
        return []
    return [
        f"Removed since: {len(removed):,}. The filter above leaves their rows out. Programs that read the files of the "
        "index themselves still find them."
    ]

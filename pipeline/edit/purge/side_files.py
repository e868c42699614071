"""Files that show samples to people: pictures, the report, the summary, the verdict of a check, and the dataset card."""

from __future__ import annotations

import json
from collections.abc import Collection

import pyarrow.compute as pc

from pipeline.output.dataset import read_dataset
from pipeline.output.index import newest_index
from pipeline.output.layout.dataset_card import write_card
from pipeline.output.purges.purged_rows import is_purged
from pipeline.output.verify import PATH as VERDICT
from pipeline.progress.summary import example_rejects
from pipeline.report.page import PATH as REPORT
from pipeline.report.page import write_page
from pipeline.report.pictures import PATH as GALLERY
from pipeline.report.pictures import read_pictures, write_pictures
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

SUMMARY = "summary.json"


def rewrite_side_files(store: Store, ids: Collection[str]) -> None:
    """Take purged samples out of the files that are kept. ids: those of all purged samples. Safe to call again."""
    pictures = read_pictures(store)
    left = [picture for picture in pictures if picture.id not in ids]
    if len(left) < len(pictures):
        write_pictures(store, left)
    _rewrite_summary(store)
    index = newest_index(store)
    if index is not None:
        write_card(store, read_dataset(store).recipe, index)
    if store.size(REPORT) is not None:
        write_page(store)


def files_to_make_again(store: Store) -> list[str]:
    """Paths of files that may show purged samples and can be made again: the verdict, and pictures of several samples."""
    pictures = [path for path in store.list_files("previews") if path != GALLERY]
    return [*pictures, *([VERDICT] if store.size(VERDICT) is not None else [])]


def _rewrite_summary(store: Store) -> None:
    """Choose the examples of rejects in the summary anew."""
    try:
        values = json.loads(store.get(SUMMARY))
    except (FileNotFoundError, ValueError):
        return
    index = newest_index(store)
    examples: list[str] = []
    for path in [] if index is None else index.rejects:
        table = read_parquet(store.get(path))
        examples += example_rejects(table.filter(pc.invert(is_purged(table))), examples)
    if values.get("reject_examples") != examples:
        store.put(SUMMARY, json.dumps(values | {"reject_examples": examples}, indent=1).encode())

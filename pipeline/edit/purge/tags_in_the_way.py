"""Tags whose version still has samples that a purge would take."""

from __future__ import annotations

import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.output.edits.edits import Edits
from pipeline.output.edits.version import edits_of, find_version, tag_names
from pipeline.output.index import Index, read_index_entry
from pipeline.output.purges.purged_rows import columns_to_look_at, has_purgeable_data
from pipeline.progress.formatting import number
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def count_needed(store: Store, edits: Edits) -> dict[str, int]:
    """Number of samples of each tag that the edits remove and that the tag still has; tags without any are left out."""
    needed: dict[str, int] = {}
    for name in tag_names(store):
        version = find_version(store, name)
        assert version.index is not None, "a tag names an index"
        index = read_index_entry(store, version.index)
        if isinstance(index, Index):
            count = _count(store, index, edits, edits_of(store, version))
            if count:
                needed[name] = count
    return needed


def refuse_for_tags(store: Store, needed: dict[str, int]) -> None:
    """Raise ConfigError, which names the tags, if some need the bytes of removed samples."""
    if needed:
        raise ConfigError(
            f"{store.url}: nothing was purged, because tags need what was removed. Remove these tags (untag NAME), or give "
            "--despite-tags if the data must go: the tags then stay, without these samples",
            [f"{name} needs {number(count, 'sample')}" for name, count in needed.items()],
        )


def _count(store: Store, index: Index, edits: Edits, own: Edits) -> int:
    columns = list(dict.fromkeys([*columns_to_look_at(edits), *own.columns]))
    count = 0
    for path in index.samples:
        table = read_parquet(store.get(path), columns)
        purged = has_purgeable_data(table, edits)
        left_out = own.is_removed(table) if len(own.rows) else None
        needed = purged if left_out is None else pc.and_(purged, pc.invert(left_out))
        count += pc.sum(needed).as_py() or 0
    return count

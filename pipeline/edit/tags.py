"""Makes and removes tags. A tag names an index and the edits that apply to it, and never changes."""

from __future__ import annotations

from pipeline.environment import time_now, user_name
from pipeline.errors import ConfigError, Purged
from pipeline.output.edits.edits import Edits, count_removed
from pipeline.output.edits.version import Tag, edits_of, find_version, read_tag, tag_path
from pipeline.output.index import Index, read_index
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.store import Store


def make_tag(store: Store, name: str, version: str | None = None) -> Tag:
    """Tag a version of an output; None for the newest one. The tag, which may have been there before.

    ConfigError if the tag names another version, or if the output has no index yet.
    """
    path = tag_path(name)
    found = find_version(store, version)
    if found.index is None:
        raise ConfigError(f"{store.url} has no index yet: a tag needs a finished job")
    try:
        index = read_index(store, found.index)
    except FileNotFoundError:
        raise ConfigError(f"{store.url} has no index {found.index}") from None
    samples = count_samples(store, index, edits_of(store, found))
    tag = Tag(index=found.index, edits=found.edits, samples=samples, by=user_name(), time=time_now())
    if store.put_new(path, tag.to_json()):
        failpoint(Failpoint.TAG_RECORDED)
        try:
            read_index(store, found.index)
        except Purged:  # a purge that began before the tag was there
            store.delete(path)
            raise
        return tag
    recorded = read_tag(store, name)
    if (recorded.index, recorded.edits) != (tag.index, tag.edits):
        raise ConfigError(
            f"the tag '{name}' is there and never changes: it names index {recorded.index} and edits {recorded.edits}, "
            f"made by {recorded.by} at {recorded.time}; take another name"
        )
    return recorded


def remove_tag(store: Store, name: str) -> Tag:
    """Remove a tag. ConfigError if there is none."""
    tag = read_tag(store, name)
    store.delete(tag_path(name))
    failpoint(Failpoint.TAG_REMOVED)
    return tag


def count_samples(store: Store, index: Index, edits: Edits) -> int:
    """Number of samples of an index that are not removed."""
    return index.num_samples - count_removed(store, index.samples, edits)

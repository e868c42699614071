"""Names of the files of an output. Whatever has another name was not written by this program, and is passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from pipeline.storage.store import PARTIAL, Store

UNIT = r"[a-z0-9][a-z0-9-]*"
"""A unit's name; see ``pipeline.sources.units.unit_name``."""
PLAN = re.compile(r"plan/\d{4,}\.parquet")
UNIT_METADATA = re.compile(rf"metadata/({UNIT})\.(\d+)\.parquet")
"""Unit and revision."""
SHARD = re.compile(rf"shards/({UNIT})-[0-9a-f]{{8}}\.tar")
"""Unit."""
INDEX = re.compile(r"index/(\d+)\.json")
"""Generation."""
INDEX_PART = re.compile(r"index/[0-9a-f]{16}/(?:shards\.txt|(?:samples|rejects|skips)-\d{5,}\.parquet)")
INDEX_RANGE = re.compile(r"index/ranges/([0-9a-f]{16})-[0-9a-f]{8}\.json")
"""Digest of the units."""
EDITS = re.compile(r"edits/(\d{4,})\.parquet")
"""Generation."""
TAG = re.compile(r"tags/([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\.json")
"""Name of the tag."""
EXPORT = re.compile(r"exports/[0-9a-f]{16}\.json")
PURGE = re.compile(r"purges/(\d{4,})\.json")
"""Number of the purge."""
RUN_PART = re.compile(r"runs/([0-9A-Za-z]+)-\d+\.jsonl")
"""Job."""
ATTEMPT = re.compile(rf"attempts/({UNIT})/([0-9A-Za-z]+-\d+\.json)")
"""Unit and name of the file."""
OWN_FILES = (
    re.compile(r"dataset\.json|README\.md|summary\.json|verify\.json|report\.html|previews/.*"),
    PLAN,
    UNIT_METADATA,
    SHARD,
    INDEX,
    INDEX_PART,
    INDEX_RANGE,
    EDITS,
    TAG,
    EXPORT,
    PURGE,
    re.compile(r"purges/\d{4,}\.(?:changes|proof)\.json"),
    RUN_PART,
    ATTEMPT,
    re.compile(rf"{re.escape(PARTIAL)}/.+-\d+-[0-9a-f]{{16}}"),
    re.compile(r"\.probe-.*"),
)
LAYER_FILES = (
    *OWN_FILES,
    re.compile(rf"strings/{UNIT}\.parquet"),
    re.compile(r"maps/[0-9a-f]{16}/(?:\d{5}|text_ids)\.parquet"),
)
"""Files of a layer, relative to its folder."""
LAYER = re.compile(r"layers/([a-z0-9][a-z0-9_-]{0,63})(?:/(.*))?")
"""Name of the layer, and path in it."""
FOLDERS = (
    *(
        "attempts",
        "edits",
        "exports",
        "index",
        "layers",
        "metadata",
        "plan",
        "previews",
        "purges",
        "runs",
        "shards",
        "tags",
    ),
    PARTIAL,
)
OWN_SUBFOLDERS = re.compile(rf"attempts/{UNIT}|index/(?:[0-9a-f]{{16}}|ranges)|previews/.*")
LAYER_FOLDERS = re.compile(
    rf"{OWN_SUBFOLDERS.pattern}|maps(?:/[0-9a-f]{{16}})?|strings|{'|'.join(map(re.escape, FOLDERS))}"
)


def stray_files(store: Store) -> list[str]:
    """Paths of what this program did not write into an output, sorted. Folders end with a slash.

    Empty for a web server, whose files are not listed.
    """
    if not store.lists_files:
        return []
    names = store.top_level()
    strays = [name for name in names if name not in FOLDERS and not is_own(name)]
    for folder in sorted(names.intersection(FOLDERS)):
        strays += [path for path in store.list_files(folder) if not is_own(path)]
        strays += [f"{path}/" for path in _subfolders(store, folder) if not _is_own_folder(path)]
    return sorted(set(strays))


def is_own(path: str) -> bool:
    """Tell if a file has the name of one that this program writes."""
    layer = LAYER.fullmatch(path)
    patterns, path = (LAYER_FILES, layer[2] or "") if layer else (OWN_FILES, path)
    return any(pattern.fullmatch(path) for pattern in patterns)


def _is_own_folder(path: str) -> bool:
    layer = LAYER.fullmatch(path)
    return bool(OWN_SUBFOLDERS.fullmatch(path) or (layer and (not layer[2] or LAYER_FOLDERS.fullmatch(layer[2]))))


def _subfolders(store: Store, folder: str) -> Iterator[str]:
    """Folders below a folder of a local output, which exist without files too."""
    if store.folder is not None:
        for parent, names, _ in os.walk(f"{store.folder}/{folder}"):
            yield from (os.path.relpath(f"{parent}/{name}", store.folder) for name in names)

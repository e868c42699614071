"""The folder ``.nv-meta`` and the indexes of tars that Megatron-Energon needs, as ``energon prepare`` writes them.

Energon 6 and 7 read these files. The database of samples serves random access and joins, the ``.tar.idx`` files training.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import IntegrityError
from pipeline.export.targets.tars.sample_tar import TarMember

ENERGON_VERSION = "7.4.1"
"""Version of Energon whose files these are."""
DATASET = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
"""Content of ``dataset.yaml``: samples are dictionaries of members, which the trainer's cooker takes apart."""
SCHEMA = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL,
    sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL,
    byte_offset INTEGER,
    byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER,
    sample_index INTEGER,
    part_name TEXT,
    content_byte_offset INTEGER,
    content_byte_size INTEGER
);
"""
INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


@dataclass(slots=True)
class IndexedTar:
    """The places of samples and their members in a tar."""

    samples: list[tuple[str, int, int, list[tuple[str, int, int]]]] = field(default_factory=list)
    """Key, offset and size in bytes of each sample, and suffix, offset and size of each of its members."""

    def add(self, key: str, start: int, end: int, members: Sequence[TarMember]) -> None:
        """Add a sample that lies from ``start`` to ``end``."""
        self.samples.append((key, start, end - start, [(each.suffix, each.offset, each.size) for each in members]))

    def to_bytes(self) -> bytes:
        """Return the places as JSON."""
        return json.dumps(self.samples).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> IndexedTar:
        """Read what ``to_bytes`` returned."""
        return cls(json.loads(content))


def write_tar_index(path: Path, tar: IndexedTar) -> None:
    """Write the offset of each sample and the end of the last one, each as uint64."""
    _, last_start, last_size, _ = tar.samples[-1]
    offsets = [*(start for _, start, _, _ in tar.samples), last_start + last_size]
    path.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def write_meta(tars: Iterable[tuple[str, IndexedTar]], folder: Path) -> None:
    """Write all files of ``.nv-meta``. Every sample is in the split ``train``.

    tars: name and places of each tar. IntegrityError if two samples have the same key, which Energon cannot read.
    """
    folder.mkdir(parents=True)
    counts = _write_database(tars, folder / "index.sqlite")
    info = {"energon_version": ENERGON_VERSION, "shard_counts": counts}
    splits: dict[str, Any] = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    (folder / ".info.json").write_text(json.dumps(info, indent=2))
    (folder / ".info.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    (folder / "split.yaml").write_text(yaml.safe_dump(splits, sort_keys=False))
    (folder / "dataset.yaml").write_text(DATASET)
    (folder / "index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(info))))


def _write_database(tars: Iterable[tuple[str, IndexedTar]], path: Path) -> dict[str, int]:
    """Write the database of samples. Returns the number of samples of each tar."""
    counts: dict[str, int] = {}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        for tar_id, (name, tar) in enumerate(tars):
            counts[name] = len(tar.samples)
            samples = [(tar_id, key, n, start, size) for n, (key, start, size, _) in enumerate(tar.samples)]
            members = [(tar_id, n, *member) for n, (*_, parts) in enumerate(tar.samples) for member in parts]
            try:
                database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
            except sqlite3.IntegrityError as error:
                raise IntegrityError(f"{name}: the id of a sample comes twice in the export: {error}") from error
            database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", members)
        database.commit()
        database.executescript(INDEXES)
    return counts

"""Chunks of litdata, made by its own writer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ConfigError, IntegrityError
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets.chunks.fields import CHUNK_BYTES, plain_fields, tensor_fields
from pipeline.loader import LatentDataset

INDEX = "index.json"
UPDATED_AT = "1"
"""Time of the last change, which names litdata's cache. Equal exports are equal files, so it is no clock's.

``0`` would stand for a dataset without a time.
"""


class LitdataTarget(ExportTarget):
    """Chunks ``chunk-<unit>-N.bin`` in one folder, and ``index.json``, which lists them."""

    name: ClassVar[str] = "litdata"
    reader: ClassVar[str] = "litdata's StreamingDataset"

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError if litdata cannot be imported; every dataset fits."""
        _writer_class()

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the chunks of a unit, unless it has no samples. Returns litdata's index of the unit."""
        writer = _writer_class()(str(folder), chunk_bytes=CHUNK_BYTES)
        for n, sample in enumerate(samples):
            writer.add_item(n, plain_fields(sample) | dict(tensor_fields(sample)))
        writer.done()
        (path,) = folder.glob(f"*.{INDEX}")
        index = json.loads(path.read_bytes())
        path.unlink()
        for n, chunk in enumerate(index["chunks"]):
            name = f"chunk-{unit}-{n}.bin"
            (folder / chunk["filename"]).rename(folder / name)
            chunk["filename"] = name
        return json.dumps(index).encode()

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        """Write the index over the chunks of all units. IntegrityError if units were written in different ways."""
        chunks: list[dict[str, Any]] = []
        config: dict[str, Any] | None = None
        for unit, part in parts:
            if not part:
                continue
            index = json.loads(part)
            config = config or index["config"]
            if index["config"] != config:
                raise IntegrityError(
                    f"the unit {unit} was written by another version of litdata than the units before it; export again "
                    "with one version, to another --output"
                )
            chunks += index["chunks"]
        content = {"chunks": chunks, "config": config, "updated_at": UPDATED_AT}
        (folder / INDEX).write_text(json.dumps(content, sort_keys=True))


def _writer_class() -> Any:
    """Return litdata's writer. ConfigError if it cannot be imported."""
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError as error:
        raise ConfigError(f"--to litdata needs litdata: pip install litdata ({error})") from error
    return BinaryWriter

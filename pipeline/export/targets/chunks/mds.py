"""Shards of MosaicML Streaming, made by its own writer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ConfigError
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets.chunks.fields import CHUNK_BYTES, INTEGERS, plain_fields, tensor_fields
from pipeline.loader import LatentDataset

INDEX = "index.json"


class MdsTarget(ExportTarget):
    """A folder of shards per unit, each with an index of its own, and ``index.json`` over all of them."""

    name: ClassVar[str] = "mds"
    reader: ClassVar[str] = "MosaicML Streaming's StreamingDataset"

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError if MosaicML Streaming cannot be imported; every dataset fits."""
        _writer_class()

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write ``<unit>/shard.NNNNN.mds``. Returns the index of the unit."""
        first = next(samples)
        columns = _encodings(first)
        with _writer_class()(columns=columns, out=str(folder / unit), size_limit=CHUNK_BYTES) as writer:
            for sample in itertools.chain([first], samples):
                tensors = {name: tensor.numpy() for name, tensor in tensor_fields(sample)}
                writer.write(plain_fields(sample) | tensors)
        return (folder / unit / INDEX).read_bytes()

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        """Write the index over the shards of all units, as the library's ``merge_index`` does."""
        shards = []
        for unit, part in parts:
            for shard in json.loads(part)["shards"] if part else []:
                shard["raw_data"]["basename"] = f"{unit}/{shard['raw_data']['basename']}"
                shards.append(shard)
        (folder / INDEX).write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True))


def _encodings(sample: ExportedSample) -> dict[str, str]:
    """Return the library's encoding of each field."""
    encodings = {name: "str" for name in plain_fields(sample)} | {"fps": "float64"}
    encodings |= {name: "int" for name in INTEGERS}
    return encodings | {name: "ndarray:float32" for name, _ in tensor_fields(sample)}


def _writer_class() -> Any:
    """Return the library's writer. ConfigError if it cannot be imported."""
    try:
        from streaming import MDSWriter
    except ImportError as error:
        raise ConfigError(f"--to mds needs MosaicML Streaming: pip install mosaicml-streaming ({error})") from error
    return MDSWriter

"""Sums of the latents of a unit, as they are recorded in its facts, computed again from its tar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.output.counts import LatentSums
from pipeline.output.members import LATENT
from pipeline.output.serialization import Array, dequantize, unpack_latent

SUM = "latent_sum"
"""Name of a fact that only units with latents have."""


def latent_sums(tar: Path, rows: pa.Table, old: Mapping[str, str]) -> dict[str, str]:
    """The sums over the samples of a tar, with their names in a unit's facts; empty for a layer, which has none.

    They are added in the order of the tar, as when it was encoded. rows: those of the unit, with places in the tar.
    """
    if SUM not in old:
        return {}
    sums = LatentSums(len(json.loads(old[SUM])))
    samples = rows.filter(rows["shard"].is_valid()).sort_by("offset")
    wanted = [name for name in samples.column_names if name.startswith(("latent_", "scale_", "tensor_"))]
    with tar.open("rb") as file:

        def read(row: dict[str, int], prefix: str) -> bytes:
            file.seek(row[f"{prefix}tensor_offset"])
            return file.read(row[f"{prefix}tensor_nbytes"])

        for row in samples.select([*wanted, "dtype", "store"]).to_pylist():
            channels = row["latent_c"] * (2 if row["store"] == "moments" else 1)
            size = (channels, row["latent_t"], row["latent_h"], row["latent_w"])
            stored: Array = unpack_latent(read(row, LATENT.prefix), row["dtype"], size)
            if row["dtype"] == "int8":
                scales = unpack_latent(read(row, LATENT.scale_prefix), "float32", (*size[:2], 1, 1))
                stored = dequantize(stored, scales)
            sums.add(stored)
    return sums.to_facts()

"""Everything in a batch that is not a latent: captions, and the columns that people ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.loader.collation.batch import METADATA
from pipeline.loader.samples import Samples
from pipeline.loader.schedule.epoch import BLANK
from pipeline.loader.schedule.keys import Indices


def choose_caption(rows: Mapping[str, Any], i: int, seed: int, captions: Mapping[str, float]) -> str | None:
    """Choose one of a sample's captions by weight; None if it has none of them.

    rows: columns of a batch, from which the sample is number ``i``. captions: weight of each text column.
    """
    texts = {name: rows[name][i] if name else "" for name in captions}
    if "captions" in texts and texts["captions"] is None:  # null for samples with one caption
        texts["captions"] = rows["caption"][i]
    texts = {name: text for name, text in texts.items() if text is not None and text != []}
    if not texts:
        return None
    rng = np.random.default_rng(seed)
    weights = np.cumsum([captions[name] for name in texts])
    chosen = list(texts.values())[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    return str(chosen[rng.integers(len(chosen))]) if isinstance(chosen, list) else str(chosen)


def further_columns(samples: Samples, chosen: Indices, names: Sequence[str]) -> dict[str, Tensor | list[Any]]:
    """Return columns of the samples of a batch: numbers as tensors [B], everything else as lists.

    chosen: int64 [B], ``BLANK`` for blanks, which have no values. Columns that every batch has are left out. Integers with
    missing values become floats with NaN.
    """
    names = [name for name in names if name not in METADATA]
    if not names:
        return {}
    blank = chosen == BLANK
    table = samples.columns(names, np.where(blank, 0, chosen))
    result: dict[str, Tensor | list[Any]] = {}
    for name in names:
        column = table[name].combine_chunks()
        if blank.any():
            column = pc.if_else(pa.array(blank), pa.scalar(None, column.type), column)
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if not (is_number or pa.types.is_boolean(column.type)):
            result[name] = column.to_pylist()
            continue
        if column.null_count or pa.types.is_uint64(column.type):  # torch has no operations on uint64
            column = column.cast(pa.float64(), safe=False)
        result[name] = torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    return result

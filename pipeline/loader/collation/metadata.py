"""The columns of a batch that people ask for."""

from __future__ import annotations

from collections.abc import Sequence
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

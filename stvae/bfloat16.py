"""Conversion between float32 and bfloat16, which NumPy lacks: the upper 16 bits of a float32, held as uint16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 values to bfloat16 (to nearest, ties to even) and return the bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the float32 values that equal the given bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

"""Find tensors whose bytes are not those that were written: by their checksums, and by values that are not finite."""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

from pipeline.loader.collation.pending import PendingBatch, PendingTensor
from pipeline.output.serialization import INT8_MAX

_EXPONENTS: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int, int]] = {
    torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80),
    torch.float32: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
}
"""Integers with the bits of a float, and the bits of plus and minus infinity. NaNs have larger bits of the same sign."""


def find_damage(pending: PendingBatch, tensor: PendingTensor) -> str | None:
    """Return what is wrong with a tensor that has been read, or None.

    Its checksum is compared where the whole tensor was read for it. Its values are always checked.
    """
    if problem := checksum_problem(pending, tensor):
        return _describe(pending, tensor, problem)
    stored = np.frombuffer(tensor.into, np.uint8)
    if tensor.dtype == torch.int8:
        if np.minimum.reduce(stored.view(np.int8)) < -INT8_MAX:
            return _describe(pending, tensor, f"some values are below -{INT8_MAX}")
    elif has_non_finite(stored, tensor.dtype):
        return _describe(
            pending, tensor, "some scales are not finite" if tensor.is_scales else "some values are not finite"
        )
    elif tensor.is_scales and has_negative_scales(stored.view(np.float32)):
        return _describe(pending, tensor, "some scales are negative")
    return None


def checksum_problem(pending: PendingBatch, tensor: PendingTensor) -> str | None:
    """Return how the checksum of a tensor differs from the recorded one; None if it does not, or was not read whole."""
    if tensor.whole is None:
        return None
    expected, got = pending.rows[tensor.columns.checksum][tensor.place], google_crc32c.value(bytes(tensor.whole))
    return None if got == expected else f"crc32c {got}, expected {expected}"


def has_non_finite(stored: npt.NDArray[np.uint8], dtype: torch.dtype) -> bool:
    """Return whether stored floats contain an infinity or a NaN."""
    # Shapes: stored is the bytes of n floats; both views are [n] integers.
    # Invariant: among floats of one sign, the order of the bits is the order of the values, and NaNs come last.
    # Example: float16 1.0 is 0x3C00, infinity 0x7C00, NaN 0x7E00; -1.0 is 0xBC00, minus infinity 0xFC00.
    signed, unsigned, plus_infinity, minus_infinity = _EXPONENTS[dtype]
    if not len(stored):
        return False
    largest = np.maximum.reduce  # what the method max calls, at half the overhead
    return bool(largest(stored.view(signed)) >= plus_infinity or largest(stored.view(unsigned)) >= minus_infinity)


def has_negative_scales(scales: npt.NDArray[np.float32]) -> bool:
    """Return whether a scale is below zero, which none is that was written."""
    return bool(len(scales) and np.minimum.reduce(scales, axis=None) < 0)


def _describe(pending: PendingBatch, tensor: PendingTensor, problem: str) -> str:
    rows, i = pending.rows, tensor.place
    return (
        f"{rows['shard'][i]}: the tensor of {rows['id'][i]} ({rows['key'][i]}) at byte "
        f"{rows[tensor.columns.offset][i]} is damaged: {problem}; run jobs/verify_dataset.py to "
        "find all damaged samples, or give on_damage='replace'"
    )

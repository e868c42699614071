"""Find tensors whose bytes are not those that were written: by their checksums, and by values that are not finite."""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

from pipeline.loader.collation.pending import MemberLayout, PendingBatch
from pipeline.loader.schedule.epoch import BLANK
from pipeline.output.members import CHECKSUM, Member

_EXPONENTS: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int, int]] = {
    torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80),
    torch.float32: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
}
"""Integers with the bits of a float, and the bits of plus and minus infinity. NaNs have larger bits of the same sign."""


def find_damage(pending: PendingBatch, dtype: torch.dtype) -> dict[int, str]:
    """Return what is wrong with the damaged samples of a batch that has been read, by their place in it.

    Checksums are compared where whole tensors were read for it. Values are always checked.
    """
    damaged: dict[int, str] = {}
    for i, member, content in pending.checks:
        expected, got = pending.rows[member.column(CHECKSUM)][i], google_crc32c.value(bytes(content))
        if got != expected:
            damaged.setdefault(i, _describe(pending, i, member, f"crc32c {got}, expected {expected}"))
    for layout in pending.layouts:
        # one pass over all samples, because damage is rare
        if has_non_finite(pending.buffer.bytes[layout.offsets[0] : layout.end].numpy(), dtype):
            for i in range(len(layout.offsets)):
                if pending.samples[i] != BLANK and has_non_finite(_content(pending, layout, i), dtype):
                    damaged.setdefault(i, _describe(pending, i, layout.member, "some values are not finite"))
    return damaged


def has_non_finite(stored: npt.NDArray[np.uint8], dtype: torch.dtype) -> bool:
    """Return whether stored floats contain an infinity or a NaN."""
    # Shapes: stored is the bytes of n floats; both views are [n] integers.
    # Invariant: among floats of one sign, the order of the bits is the order of the values, and NaNs come last.
    # Example: float16 1.0 is 0x3C00, infinity 0x7C00, NaN 0x7E00; -1.0 is 0xBC00, minus infinity 0xFC00.
    signed, unsigned, plus_infinity, minus_infinity = _EXPONENTS[dtype]
    if not len(stored):
        return False
    return bool(stored.view(signed).max() >= plus_infinity or stored.view(unsigned).max() >= minus_infinity)


def _content(pending: PendingBatch, layout: MemberLayout, i: int) -> npt.NDArray[np.uint8]:
    ends = [*layout.offsets[1:], layout.end]
    content: npt.NDArray[np.uint8] = pending.buffer.bytes[layout.offsets[i] : ends[i]].numpy()
    return content


def _describe(pending: PendingBatch, i: int, member: Member, problem: str) -> str:
    rows = pending.rows
    return (
        f"{rows['shard'][i]}: the tensor of {rows['id'][i]} ({rows['key'][i]}) at byte "
        f"{rows[member.column('tensor_offset')][i]} is damaged: {problem}; run jobs/verify_dataset.py to find all damaged "
        "samples, or give on_damage='replace'"
    )

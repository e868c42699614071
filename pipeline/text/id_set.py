"""A set of text ids that needs ten bytes for each, in sorted arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.bytes_]
"""Sorted ids, as ``S10``."""


class IdSet:
    """Grows by portions. Arrays of similar size are merged, so that there are few of them."""

    def __init__(self, ids: Ids | None = None) -> None:
        """``ids``: distinct and sorted."""
        self._arrays: list[Ids] = [] if ids is None else [ids]

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def add(self, hex_ids: Sequence[str]) -> list[int]:
        """Add ids; the positions of those that were not in the set, the first one of each id."""
        ids = np.frombuffer(bytes.fromhex("".join(hex_ids)), dtype="S10")
        distinct, positions = np.unique(ids, return_index=True)
        is_new = np.ones(len(distinct), dtype=bool)
        for known in self._arrays:
            places = np.minimum(np.searchsorted(known, distinct), len(known) - 1)
            is_new &= known[places] != distinct
        if is_new.any():
            self._arrays.append(distinct[is_new])
            while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
                self._arrays[-2:] = [_merged(*self._arrays[-2:])]
        new: list[int] = np.sort(positions[is_new]).tolist()
        return new

    def portions(self, size: int) -> Iterator[list[str]]:
        """Yield all ids as hex digits, sorted, ``size`` at a time."""
        while len(self._arrays) > 1:
            self._arrays[-2:] = [_merged(*self._arrays[-2:])]
        for ids in self._arrays:
            for start in range(0, len(ids), size):
                digits = ids[start : start + size].tobytes().hex()
                yield [digits[n : n + 20] for n in range(0, len(digits), 20)]


def _merged(one: Ids, other: Ids) -> Ids:
    """Both sorted arrays as one."""
    merged = np.concatenate([one, other])
    merged.sort(kind="stable")  # two sorted halves are merged in linear time
    return merged

"""Notices that a manifest names one video in several rows without ranges, so that all of them would be the same clip."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

MAX_ROWS = 10_000_000
"""Number of rows that are compared: 8 bytes of memory each. Later rows are not."""


class Repeats:
    """Collects the paths of a manifest, column by column, as hashes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in names}
        self._hashes: dict[str, array[int]] = {}
        self._num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Add rows; only the columns that may hold paths count."""
        if self._num_rows >= MAX_ROWS:
            return
        for name in table.schema.names:
            if name.lower() in self._names and table.schema.names.count(name) == 1:
                hashes = self._hashes.setdefault(name, array("q"))
                self._add_values(hashes, [None] * (self._num_rows - len(hashes)))  # blocks without the column
                self._add_values(hashes, table[name].to_pylist())
        self._num_rows += table.num_rows

    @staticmethod
    def _add_values(hashes: array[int], values: list[Any]) -> None:
        # a row without a path gets a number of its own, since such rows do not repeat one another
        hashes.extend(
            hash(value) if isinstance(value, str | bytes | int) else -1 - row
            for row, value in enumerate(values, len(hashes))
        )

    def first(self, name: str) -> tuple[int, int, int] | None:
        """The first two rows, from 0 on, with the same path, and the number of rows that repeat one; None if all differ."""
        hashes = np.frombuffer(self._hashes[name], dtype=np.int64) if name in self._hashes else np.empty(0, np.int64)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if not len(equal):
            return None
        pair = equal[np.argmin(order[equal + 1])]
        return int(order[pair]), int(order[pair + 1]), len(equal)

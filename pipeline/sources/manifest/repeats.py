"""Notices that a manifest names one video in several rows without ranges, so that all of them would be the same clip."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.manifest.captions import is_binary

MAX_ROWS = 10_000_000
"""Number of rows that are compared: 8 bytes of memory each. Later rows are not."""
ROWS_AT_ONCE = 1 << 16
LONGEST_BYTES = 512
"""Size of a path up to which it is hashed together with others."""

Hashes = npt.NDArray[np.uint64]


class Repeats:
    """Collects the paths of a manifest, column by column, as hashes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in names}
        self._hashes: dict[str, list[Hashes]] = {}
        self._num_hashes: dict[str, int] = {}
        self._num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Add rows; only the columns that may hold paths count."""
        if self._num_rows >= MAX_ROWS:
            return
        for name in table.schema.names:
            if name.lower() in self._names and table.schema.names.count(name) == 1:
                missing = self._num_rows - self._num_hashes.get(name, 0)
                self._add(name, pa.nulls(missing))  # blocks without the column
                for chunk in table[name].chunks:
                    for first in range(0, len(chunk), ROWS_AT_ONCE):
                        self._add(name, chunk.slice(first, ROWS_AT_ONCE))
        self._num_rows += table.num_rows

    def _add(self, name: str, values: pa.Array) -> None:
        if len(values):
            first = self._num_hashes.get(name, 0)
            self._hashes.setdefault(name, []).append(hash_rows(values, first))
            self._num_hashes[name] = first + len(values)

    def first(self, name: str) -> tuple[int, int, int] | None:
        """The first two rows, from 0 on, with the same path, and the number of rows that repeat one; None if all differ."""
        if name not in self._hashes:
            return None
        hashes = np.concatenate(self._hashes[name])
        self._hashes[name] = [hashes]
        ascending = np.sort(hashes)
        if not (ascending[1:] == ascending[:-1]).any():
            return None
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        pair = equal[np.argmin(order[equal + 1])]
        return int(order[pair]), int(order[pair + 1]), len(equal)


def hash_rows(values: pa.Array, first_row: int) -> Hashes:
    """A hash of every text, or whole number, of an array. A row without one gets a hash of its row's number.

    Shapes: ``words`` is ``[N, W]``, the texts padded with zeros to W words of 8 bytes; ``found`` is ``[N]``.
    Invariant: before column ``w`` is mixed in, ``found`` is a hash of the length and of the words before ``w``.
    Example: "a.mp4" is one word, the bytes of "a.mp4" and three zeros; its hash starts with that of 5.
    """
    rows = _mixed(np.arange(first_row, first_row + len(values), dtype=np.uint64) ^ np.uint64(1 << 63))
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        found = _mixed(pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.uint64))
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or is_binary(values.type):
        values = pc.cast(values, pa.large_binary())
        lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
        texts = pc.if_else(pa.array(lengths <= LONGEST_BYTES), values, b"").view(pa.large_string())
        width = -(-max(1, min(int(lengths.max()), LONGEST_BYTES)) // 8) * 8
        padded = pc.ascii_rpad(pc.fill_null(texts, ""), width=width, padding="\0")
        words = np.frombuffer(padded.buffers()[2], dtype=np.uint64, count=len(values) * width // 8)
        found = _mixed(lengths.astype(np.uint64))
        for column in words.reshape(len(values), -1).T:
            found = _mixed(found ^ column)
        for row in np.flatnonzero(lengths > LONGEST_BYTES):
            found[row] = hash(values[int(row)].as_py()) & (2**64 - 1)
    else:
        return rows
    return np.where(pc.is_valid(values).to_numpy(zero_copy_only=False), found, rows)


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit of 64-bit numbers over all of their bits: the finalizer of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed

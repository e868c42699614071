"""Cuts the text of CSV and JSONL manifests into slices of whole rows, and refuses text that cannot be read as such."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from pipeline.errors import ConfigError
from pipeline.sources.manifest.bounds import (
    MAX_HEADER_BYTES,
    MAX_NESTING,
    check_columns,
    check_row_bytes,
    check_slice_bytes,
    is_nested_too_deeply,
)
from pipeline.sources.manifest.layout import Layout
from pipeline.storage.urls import canonical

BLOCK_BYTES = 16 << 20
BOMS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"} | {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LONGEST_RECORD = 1 << 20
"""Bytes of a damaged row that are looked at to find its column."""


class NoRows(ConfigError):
    """A text manifest is empty or has only a header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A range of rows, and where its text lies in a CSV or JSONL file."""

    start: int
    stop: int
    byte_start: int = 0
    byte_stop: int = 0
    items: range | None = None
    """Ordinals of the items of these rows; None if each row is one item."""

    @property
    def ordinals(self) -> range:
        """Ordinals of the items of these rows."""
        return range(self.start, self.stop) if self.items is None else self.items


def read_header(file: IO[bytes], layout: Layout, url: str) -> bytes:
    """The first line of a table; a byte order mark in other layouts. ConfigError if the text is of another kind."""
    name = f"manifest '{canonical(url)}'"
    beginning = file.read(4096)
    file.seek(0)
    for mark, encoding in BOMS.items():
        if beginning.startswith(mark):
            raise ConfigError(f"{name} is {encoding}, not UTF-8; save it as UTF-8")
    if b"\0" in beginning:
        raise ConfigError(f"{name} has zero bytes; perhaps it is UTF-16: save it as UTF-8")
    if not layout.separator:
        mark = codecs.BOM_UTF8 if beginning.startswith(codecs.BOM_UTF8) else b""
        file.seek(len(mark))
        return mark
    header = file.readline(MAX_HEADER_BYTES + 1)
    if len(header) > MAX_HEADER_BYTES:
        raise ConfigError(
            f"{name} has a first line of more than {MAX_HEADER_BYTES >> 20} MB; it should name the columns"
        )
    if b"\r" in header.rstrip(b"\r\n"):
        raise ConfigError(f"{name} has lines that end in CR alone; save it with the line ends LF or CRLF")
    if header.count(b'"') % 2:
        raise ConfigError(f"{name} has a line break inside a column name")
    try:
        names = next(csv.reader([header.decode("utf-8-sig")], delimiter=layout.separator), [])
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not UTF-8 in its first line, the column names; save it as UTF-8") from None
    check_names([column for column in names if column], url)
    return header


def check_names(names: list[str], url: str) -> None:
    """ConfigError if two columns have the same name, or if there are too many."""
    check_columns(names, f"manifest '{canonical(url)}'")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"manifest '{canonical(url)}' has {Counter(names)[twice[0]]} columns named '{twice[0]}'; rename one"
        )


def cut_records(file: IO[bytes], header: bytes, rows_per_slice: int, layout: Layout, url: str) -> list[Slice]:
    """Cut the text behind the header into slices of whole records.

    In a table, a line break between quotes does not end a record. Empty lines are no records. ConfigError, with row and
    column, if the text is not UTF-8; with the row, if a quote is not closed.
    """
    cutter = _Cutter(url=url, header=header, every=rows_per_slice, layout=layout, offset=len(header))
    while block := file.read(BLOCK_BYTES):
        cutter.add(file, block)
    return cutter.slices(file)


@dataclass(kw_only=True, slots=True)
class _Cutter:
    """Counts records block by block.

    Shapes: ``data``, ``ends`` and ``parity`` have an element per byte of a block; ``positions`` one per record end.
    Invariant: ``cuts`` are the offsets where slices begin; ``count`` records end before ``offset``, the last of them
    at ``last_end``; ``inside`` is 1 if an odd number of quotes come before ``offset``.
    Example: records of 2 bytes, 3 per slice: ends at 2, 4, 6, 8 give the cuts 0, 6 and, at the end of the file, 8.
    """

    url: str
    header: bytes
    every: int
    layout: Layout
    offset: int
    count: int = 0
    inside: int = 0
    last_end: int = -1
    last_byte: bytes = b"\n"
    cuts: list[int] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def add(self, file: IO[bytes], block: bytes) -> None:
        """Count the records that end in the next block."""
        if self.last_end < 0:
            self.last_end, self.cuts = self.offset, [self.offset]
        positions = self._ends_in(block)
        self._check_utf8(file, block, positions)
        self._check_bounds(block, positions)
        starts = np.concatenate(([self.last_end], positions[:-1])) if len(positions) else positions
        lengths = positions - starts
        empty = lengths == 1
        if (two := lengths == 2).any():
            data = np.frombuffer(self.last_byte + block, dtype=np.uint8)  # the CR may end the block before
            empty |= two & (data[positions - self.offset - 1] == ord("\r"))
        records = positions[~empty]
        to_cut = self.every - 1 - self.count % self.every  # records of this block before the next cut
        self.cuts += records[to_cut :: self.every].tolist()
        self.count += len(records)
        self.offset += len(block)
        self.last_byte = block[-1:]
        if len(positions):
            self.last_end = int(positions[-1])

    def slices(self, file: IO[bytes]) -> list[Slice]:
        """The slices of everything that was added."""
        name = f"manifest '{canonical(self.url)}'"
        if self.inside:
            raise ConfigError(f"{name} has a quote in row {self.count + 1} that is not closed")
        if self._decoder.getstate()[0]:
            raise ConfigError(f"{name} ends within a character; it is cut, or not UTF-8")
        if self.last_end >= 0:
            file.seek(self.last_end)
            if file.read(self.offset - self.last_end).strip():
                self.count += 1
        if not self.count:
            raise NoRows(f"{name} has no rows{', only a header' if self.header.strip() else ''}")
        if self.cuts[-1] != self.offset and self.count > (len(self.cuts) - 1) * self.every:
            self.cuts.append(self.offset)
        self.cuts[-1] = self.offset  # empty lines at the end
        starts = range(0, self.count, self.every)
        for start, (first, end) in zip(starts, itertools.pairwise(self.cuts), strict=True):
            check_slice_bytes(end - first, start, min(start + self.every, self.count), name)
        return [
            Slice(start=s, stop=min(s + self.every, self.count), byte_start=a, byte_stop=b)
            for s, (a, b) in zip(starts, itertools.pairwise(self.cuts), strict=True)
        ]

    def _ends_in(self, block: bytes) -> np.ndarray:
        """The offsets in the file behind every record and empty line that ends in a block."""
        data = np.frombuffer(block, dtype=np.uint8)
        ends = data == ord("\n")
        if self.layout.separator:
            parity = np.bitwise_xor.accumulate((data == ord('"')).view(np.uint8)) ^ self.inside
            ends &= parity == 0
            self.inside = int(parity[-1])
        return np.flatnonzero(ends) + 1 + self.offset

    def _check_bounds(self, block: bytes, positions: np.ndarray) -> None:
        """ConfigError for a row that is too long, or nested too deeply for Arrow's parser."""
        name = f"manifest '{canonical(self.url)}'"
        edges = np.concatenate(([self.last_end], positions, [self.offset + len(block)]))
        lengths = np.diff(edges)
        check_row_bytes(int(lengths.max()), self.count + 1 + int(lengths.argmax()), name)
        if self.layout.separator is None:
            line = is_nested_too_deeply(block, positions - self.offset)
            if line is not None:
                raise ConfigError(
                    f"{name}: row {self.count + 1 + line} has more than {MAX_NESTING} lists or objects inside one "
                    "another; write them as text"
                )

    def _check_utf8(self, file: IO[bytes], block: bytes, positions: np.ndarray) -> None:
        """ConfigError, with row and column, if the block is not UTF-8."""
        waiting = len(self._decoder.getstate()[0])
        if not waiting and block.isascii():
            return
        try:
            self._decoder.decode(block)
        except UnicodeDecodeError as error:
            bad = self.offset - waiting + error.start
            before = positions[positions <= bad]
            start = int(before[-1]) if len(before) else self.last_end
            column = _column_of(file, start, bad, self.header, self.layout)
            raise ConfigError(
                f"manifest '{canonical(self.url)}': row {self.count + len(before) + 1}{column} is not UTF-8; "
                f"save the file as {'CSV UTF-8' if self.layout.name == 'csv' else 'UTF-8'}"
            ) from None


def _column_of(file: IO[bytes], start: int, bad: int, header: bytes, layout: Layout) -> str:
    """The column of the byte at ``bad`` in the record that begins at ``start``, for a message; empty if not found."""
    if bad - start > LONGEST_RECORD:
        return ""
    file.seek(start)
    if layout.separator:
        names = next(csv.reader([header.decode("utf-8-sig")], delimiter=layout.separator), [])
        text = file.read(bad - start).decode("latin-1")
        fields = list(csv.reader([text], delimiter=layout.separator)) or [[""]]
        number = len(fields[0]) - 1
        return f", column '{names[number]}'," if number < len(names) else ""
    line = file.readline(LONGEST_RECORD).decode(errors="replace")
    try:
        values = json.loads(line)
    except ValueError:
        return ""
    found = [name for name, value in values.items() if "\ufffd" in json.dumps(value, ensure_ascii=False)]
    return f", column '{found[0]}'," if found else ""

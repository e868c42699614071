"""Bounds of Parquet pages, from their own headers: what the footer says about sizes may be a lie.

A page may unpack to 2 GB, a dictionary's value may be repeated for every row, and a list may have a million nulls, all in a
few hundred bytes. Headers are thrift's compact protocol (parquet-format, PageHeader).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

import pyarrow.parquet as pq

from pipeline.errors import ConfigError

MAX_PAGE_BYTES = 64 << 20
"""Bytes that a page may have unpacked, however small it is packed."""
MAX_PAGE_RATIO = 25
"""Largest ratio of unpacked to packed bytes of larger pages: more than Snappy, the usual codec, can reach."""
MAX_LIST_BYTES, MAX_LIST_RATIO = 256 << 20, 1000
"""Bytes of all lists of a row group, and their ratio to the packed bytes above that."""
MAX_REPEATED_BYTES = 16 << 30
"""Bytes of all values of a row group that come from its dictionary; above that, ``MAX_LIST_RATIO`` counts."""
MAX_ROWS, MAX_ROWS_PER_BYTE = 1_000_000, 100
"""Rows that any file may have, and rows per byte of larger files. A row names a video of its own."""
HEADER_BYTES, LONGEST_HEADER_BYTES = 1 << 10, 1 << 20
LARGE_CHUNK_BYTES = 64 << 20
"""Packed bytes of a column above which pages whose codec shrinks text to a twentieth at best are not looked at."""
DICTIONARY_PAGE, DELTA_BYTE_ARRAY = 2, 7
"""Values of ``PageType`` and ``Encoding``. The second repeats the beginning of the value before."""


class UnboundedColumn(ConfigError):
    """A column of a row group that would take more memory than its bytes in the file justify, or that cannot be measured."""


class ManifestFile(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """A Parquet manifest with the file that it is read from."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, pre_buffer=False)
        self.file = file


@dataclass(kw_only=True, slots=True)
class ColumnBounds:
    """Sizes of a column in one row group."""

    repeated_bytes: int = 0
    """Most bytes that each row may have without as many bytes in the file."""
    unpacked_bytes: int = 0
    """Bytes of all pages."""
    num_values: int = 0


def check_rows(parquet: ManifestFile, size_bytes: int, name: str) -> None:
    """ConfigError if a file has more rows than fit in it. ``name``: the manifest, for messages."""
    groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
    rows = max(parquet.metadata.num_rows, sum(groups))
    if min([0, *groups]) < 0 or sum(groups) != parquet.metadata.num_rows:
        raise ConfigError(
            f"{name} has {parquet.metadata.num_rows} rows by its footer and {sum(groups)} in its row groups"
        )
    if size_bytes and rows > max(MAX_ROWS, MAX_ROWS_PER_BYTE * size_bytes):
        raise ConfigError(f"{name} claims {rows} rows in {size_bytes} bytes; a row should name a video")


def check_pages(parquet: ManifestFile, names: set[str], name: str) -> None:
    """ConfigError if a page of the columns in ``names`` is a bomb. Large columns are measured when they are read."""
    for group in range(parquet.num_row_groups):
        facts = parquet.metadata.row_group(group)
        for number in range(facts.num_columns):
            column = facts.column(number)
            is_small = column.total_compressed_size <= LARGE_CHUNK_BYTES
            if is_small and column.path_in_schema.partition(".")[0] in names:
                column_bounds(parquet, group, number, name)


def column_bounds(parquet: ManifestFile, group: int, number: int, name: str) -> ColumnBounds:
    """Return the sizes of a column in a row group. UnboundedColumn if they are absurd or a header cannot be read."""
    column = parquet.metadata.row_group(group).column(number)
    where = f"{name}: column '{column.path_in_schema}'"
    starts = [offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset]
    position, bounds = min(starts, default=0), ColumnBounds()
    end = position + column.total_compressed_size
    skips = column.compression in ("UNCOMPRESSED", "SNAPPY") and column.total_compressed_size > LARGE_CHUNK_BYTES
    while position < end and bounds.num_values < column.num_values:
        header, length = _read_header(parquet.file, position, where)
        unpacked, packed = header.get(2, -1), header.get(3, -1)
        if unpacked < 0 or packed < 0 or length <= 0:
            raise UnboundedColumn(f"{where} has a page with the size {min(unpacked, packed)}; write the file again")
        if unpacked > max(MAX_PAGE_BYTES, MAX_PAGE_RATIO * packed):
            raise UnboundedColumn(
                f"{where} has a page of {packed} bytes that unpacks to {unpacked}; write smaller pages"
            )
        facts = header.get(5) or header.get(8) or {}
        encoding = facts.get(2) if 5 in header else facts.get(4)
        if header.get(1) == DICTIONARY_PAGE or encoding == DELTA_BYTE_ARRAY:
            bounds.repeated_bytes = max(bounds.repeated_bytes, unpacked)
        elif not facts:
            raise UnboundedColumn(f"{where} has a page of an unknown kind; write the file again")
        if header.get(1) == DICTIONARY_PAGE:
            average_bytes = unpacked / max((header.get(7) or {}).get(1, 1), 1)
            repeated = int(average_bytes * column.num_values)
            if repeated > max(MAX_REPEATED_BYTES, MAX_LIST_RATIO * column.total_compressed_size):
                raise UnboundedColumn(
                    f"{where} repeats values of {int(average_bytes)} bytes {column.num_values} times; a row should name a "
                    "video"
                )
        bounds.num_values += facts.get(1, 0)
        bounds.unpacked_bytes += unpacked
        position += length + packed
        if skips and facts:
            bounds.unpacked_bytes = column.total_uncompressed_size
            break
    if parquet.schema.column(number).max_repetition_level:
        list_bytes = bounds.num_values * (8 + bounds.repeated_bytes)
        if list_bytes > max(MAX_LIST_BYTES, MAX_LIST_RATIO * column.total_compressed_size):
            raise UnboundedColumn(
                f"{where} has lists of {list_bytes} bytes in {column.total_compressed_size} bytes of the file"
            )
        bounds.unpacked_bytes = max(bounds.unpacked_bytes, list_bytes)
    return bounds


def _read_header(file: IO[bytes], position: int, where: str) -> tuple[dict[int, Any], int]:
    """Read the fields of a page header by number, and its length in bytes."""
    size = HEADER_BYTES
    while True:
        file.seek(position)
        data = file.read(size)
        try:
            return _Compact(data).read_struct()
        except (IndexError, RecursionError):
            if len(data) < size or size >= LONGEST_HEADER_BYTES:
                raise UnboundedColumn(f"{where} has a page whose header cannot be read; write the file again") from None
            size = LONGEST_HEADER_BYTES


class _Compact:
    """Reads thrift's compact protocol. IndexError if the bytes end before."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read_struct(self) -> tuple[dict[int, Any], int]:
        """Return the fields of a struct by number, and the bytes read so far."""
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._zigzag()
            fields[number] = self._value(kind & 15)
        return fields, self._position

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in range(min(count, len(self._data)))]
        if kind == 12:
            return self.read_struct()[0]
        raise IndexError

    def _byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _skip(self, count: int) -> None:
        self._position += count
        if self._position > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

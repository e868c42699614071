from __future__ import annotations

import sys

import pyarrow as pa

from pipeline.storage.parquet import arrow_file, read_parquet, write_parquet

TABLE = pa.table({"name": ["a", None], "count": [1, 2]})


def test_a_table_is_read_back_whole_or_by_column() -> None:
    content = write_parquet(TABLE)
    assert read_parquet(content).equals(TABLE)
    assert read_parquet(content, ["count"]).to_pydict() == {"count": [1, 2]}


def test_equal_tables_are_equal_bytes() -> None:
    assert write_parquet(TABLE) == write_parquet(pa.table(TABLE.to_pydict()))


def test_arrow_never_holds_a_python_object() -> None:
    content = bytes(1000)
    before = sys.getrefcount(content)
    file = arrow_file(content)
    assert sys.getrefcount(content) == before and file.read() == content

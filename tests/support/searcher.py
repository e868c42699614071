"""Searches every file of an output for bytes and texts, with plain readers rather than with our own."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def find_traces(output: Path, contents: Collection[bytes], texts: Collection[str]) -> list[str]:
    """Paths of files, members of tars and cells of tables that contain one of the given bytes or texts."""
    wanted = [*contents, *(text.encode() for text in texts), *(json.dumps(text)[1:-1].encode() for text in texts)]
    return sorted({where for where, data in _pieces(output) if any(content in data for content in wanted)})


def _pieces(output: Path) -> Iterator[tuple[str, bytes]]:
    """Yield everything that an output holds, as bytes: each file as it is, and once more as what its format says."""
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(output)), path.read_bytes()
        yield name, data
        if path.suffix == ".parquet":
            table = pq.read_table(io.BytesIO(data))
            yield f"{name} (facts)", str(table.schema.metadata).encode()
            for column in table.column_names:
                for row, value in enumerate(table[column].to_pylist()):
                    yield f"{name}: row {row}, {column}", _bytes_of(value)
        if path.suffix == ".tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar.getmembers():
                    file = tar.extractfile(member)
                    yield f"{name}: {member.name}", member.name.encode() + b"\n" + (file.read() if file else b"")


def _bytes_of(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, default=str, ensure_ascii=False).encode()

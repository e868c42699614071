"""Media files of a folder as Arrow columns: as objects, ten million of them would take gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.urls import FileFacts

FILE_TYPE = pa.struct([("path", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
FILES_AT_ONCE = 65_536
"""That are objects while they are collected."""

_NONE = pa.chunked_array([], FILE_TYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A media file of a folder as planning saw it."""

    path: str
    """Relative to the folder."""
    facts: FileFacts


class Files:
    """Files by path. Those that are looked at become objects."""

    def __init__(self, rows: pa.ChunkedArray = _NONE) -> None:
        self.rows = rows
        """Of ``FILE_TYPE``."""

    @classmethod
    def of(cls, found: Iterable[tuple[str, FileFacts]]) -> Files:
        """From paths and facts."""
        left, chunks = iter(found), []
        while part := list(islice(left, FILES_AT_ONCE)):
            columns = [path for path, _ in part], [facts.size for _, facts in part], [facts.etag for _, facts in part]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, FILE_TYPE, strict=True)]
            chunks.append(pa.StructArray.from_arrays(arrays, fields=list(FILE_TYPE)))
        return cls(pa.chunked_array(chunks, FILE_TYPE))

    @classmethod
    def joined(cls, parts: Iterable[Files]) -> Files:
        """All files of some, without a copy."""
        return cls(pa.chunked_array([chunk for part in parts for chunk in part.rows.chunks], FILE_TYPE))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[File]:
        for chunk in self.rows.chunks:
            for row in chunk.to_pylist():
                yield File(path=row["path"], facts=FileFacts(size=row["size"], etag=row["etag"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and bool(self.rows.equals(other.rows))

    __hash__ = None  # type: ignore[assignment]

    @property
    def size_bytes(self) -> int:
        """Of all of them together."""
        return pc.sum(self._column("size")).as_py() or 0

    def cut(self, start: int, stop: int) -> Files:
        """Those from one number to another, without a copy."""
        return Files(self.rows.slice(start, stop - start))

    def beside(self, planned: Files) -> tuple[Files, tuple[File, File] | None]:
        """Those that are not among the planned, and the first that is, with another size or tag: as it was, as it is."""
        if self == planned:
            return Files(), None
        place = pc.index_in(self._column("path"), value_set=planned._column("path"))
        was = {name: planned._column(name).take(place) for name in ("size", "etag")}
        differs = pc.or_(*(pc.not_equal(self._column(name), was[name]) for name in ("size", "etag")))
        changed = pc.index(differs, True).as_py()
        if changed < 0:
            return Files(self.rows.filter(pc.is_null(place))), None
        (now,) = self.cut(changed, changed + 1)
        facts: dict[str, Any] = {name: column[changed].as_py() for name, column in was.items()}
        return Files(), (File(path=now.path, facts=FileFacts(**facts)), now)

    def _column(self, name: str) -> pa.ChunkedArray:
        return pc.struct_field(self.rows, name)

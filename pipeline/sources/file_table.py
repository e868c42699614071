"""Media files of a folder as Arrow columns. Ten million of them as Python objects would take gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.urls import FileFacts

FILE_TYPE = pa.struct([("path", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
FILES_PER_CHUNK = 65_536
"""Number of files held as Python objects before they become an Arrow chunk."""

_NO_ROWS = pa.chunked_array([], FILE_TYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A media file of a folder as planning saw it."""

    path: str
    """Path relative to the folder."""
    facts: FileFacts


class Files:
    """An immutable sequence of files. Only the files that are iterated become objects."""

    def __init__(self, rows: pa.ChunkedArray = _NO_ROWS) -> None:
        self.rows = rows
        """Rows of ``FILE_TYPE``, one per file."""

    @classmethod
    def of(cls, paths_and_facts: Iterable[tuple[str, FileFacts]]) -> Files:
        """Collect files from their paths and facts."""
        remaining, chunks = iter(paths_and_facts), []
        while part := list(islice(remaining, FILES_PER_CHUNK)):
            columns = [path for path, _ in part], [facts.size for _, facts in part], [facts.etag for _, facts in part]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, FILE_TYPE, strict=True)]
            chunks.append(pa.StructArray.from_arrays(arrays, fields=list(FILE_TYPE)))
        return cls(pa.chunked_array(chunks, FILE_TYPE))

    @classmethod
    def concat(cls, parts: Iterable[Files]) -> Files:
        """The files of all parts, without copying them."""
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
        """Total size of the files."""
        return pc.sum(self._column("size")).as_py() or 0

    def slice(self, start: int, stop: int) -> Files:
        """The files from index ``start`` to ``stop``, without copying them."""
        return Files(self.rows.slice(start, stop - start))

    def changes_since(self, planned: Files) -> tuple[Files, tuple[File, File] | None]:
        """The files that ``planned`` lacks, and the first file whose size or tag differs there, as (planned, now).

        Shapes: N rows here, P rows in ``planned``; every column below has N rows.
        Invariant: ``index[i]`` is the row in ``planned`` with the path of row ``i``, or null if there is none; a null
        index gives null planned values, and a comparison with null is null, which is no change.
        Example: here a, b, c and planned b: index = null, 0, null; new files a and c; b is compared.
        """
        if self == planned:
            return Files(), None
        index = pc.index_in(self._column("path"), value_set=planned._column("path"))
        before = {name: planned._column(name).take(index) for name in ("size", "etag")}
        differs = pc.or_(*(pc.not_equal(self._column(name), before[name]) for name in ("size", "etag")))
        changed = pc.index(differs, True).as_py()
        if changed < 0:
            return Files(self.rows.filter(pc.is_null(index))), None
        (now,) = self.slice(changed, changed + 1)
        facts: dict[str, Any] = {name: column[changed].as_py() for name, column in before.items()}
        return Files(), (File(path=now.path, facts=FileFacts(**facts)), now)

    def _column(self, name: str) -> pa.ChunkedArray:
        return pc.struct_field(self.rows, name)

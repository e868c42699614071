"""``edits/<generation>.parquet``: the items and samples that were removed from an output. The newest generation counts.

A generation holds everything that is removed so far, so that readers read one file. Generations are numbered from 0 without
gaps. Nothing else is rewritten: readers leave out the rows that the newest generation names. Imports neither sources nor
video, since the loader uses it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError, Reject
from pipeline.output.layout.own_files import EDITS
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.concurrency import LARGE_REQUESTS, map_concurrently
from pipeline.storage.named_files import last_listed, newest_numbered
from pipeline.storage.parquet import parquet_batches, parquet_metadata, read_parquet
from pipeline.storage.store import Store

REMOVED = Reject("read", "removed", "it was removed from this output before it was encoded")
"""Reject of what an edit names before it is encoded."""
MATCHED = ("source", "ordinal", "key", "uri")
"""Columns by which an edit names items. An item is removed if it equals all that are not null."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("ordinal", pa.int64()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("time", pa.string()),
        ("generation", pa.int32()),
    ]
)
"""Columns of a generation: ``id`` (of one sample; null for whole items), the item, why, when (UTC), and in which
generation."""
ROWS_AT_ONCE = 1 << 17
"""Rows of a part of an index that are in memory together while removed ones are counted."""
ACTIONS = ("remove", "undo")
"""Kinds of changes that a generation makes to the one before it."""
FACTS = ("format_version", "action", "selection", "reason", "by", "time", "count")
"""Facts of a generation in the metadata of its file: what was done, with which arguments, why, by whom, when, how much."""


@dataclass(frozen=True, kw_only=True)
class Edits:
    """One generation of edits. Without any edits, ``generation`` is None and nothing is removed."""

    generation: int | None = None
    rows: pa.Table = field(default_factory=SCHEMA.empty_table)
    facts: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the samples that were removed alone."""
        return frozenset(self.rows["id"].drop_null().to_pylist())

    @functools.cached_property
    def items(self) -> dict[tuple[str, ...], set[tuple[Any, ...]]]:
        """The removed items by the columns that name them: the values of these columns, in their order."""
        found: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
        whole = self.rows.filter(self.rows["id"].is_null()).select(MATCHED)
        for row in whole.to_pylist():
            named = {name: value for name, value in row.items() if value is not None}
            if named:
                found.setdefault(tuple(named), set()).add(tuple(named.values()))
        return found

    @property
    def columns(self) -> list[str]:
        """Columns that ``is_removed`` needs."""
        if not len(self.rows):
            return []
        return list(dict.fromkeys(["id", *(name for names in self.items for name in names)]))

    def is_removed(self, table: pa.Table) -> pa.Array:
        """Boolean [rows]: True for the rows of a table that are removed. It needs ``columns``."""
        # Invariant: an item that is named by several columns is first looked for by each column alone, and only the rows
        # that pass are compared as a whole, so that few rows become Python objects.
        removed = _is_in(table["id"], self.ids)
        for names, wanted in self.items.items():
            candidates = functools.reduce(
                pc.and_, (_is_in(table[name], {values[n] for values in wanted}) for n, name in enumerate(names))
            )
            if len(names) > 1:
                rows = pc.indices_nonzero(candidates)
                found = zip(*(table[name].take(rows).to_pylist() for name in names), strict=True)
                exact = [row for row, values in zip(rows.to_pylist(), found, strict=True) if values in wanted]
                candidates = pc.is_in(pa.array(np.arange(len(table))), pa.array(exact, pa.int64()))
            removed = pc.or_(removed, candidates)
        return removed

    def without_removed(self, table: pa.Table) -> pa.Table:
        """The rows of a table that are not removed."""
        return table.filter(pc.invert(self.is_removed(table))) if len(self.rows) and len(table) else table

    def changes(self, table: pa.Table, earlier: Edits) -> bool:
        """Tell if an earlier generation removes other rows of a table than this one."""
        if self.generation == earlier.generation:
            return False
        return bool(self.is_removed(table) != earlier.is_removed(table))

    def as_rejects(self, table: pa.Table) -> pa.Table:
        """A table in which removed samples are rejects without captions. It needs ``columns`` and ``shard``."""
        if not len(self.rows) or not len(table):
            return table
        removed = pc.and_(self.is_removed(table), table["shard"].is_valid())
        values = {"reject_stage": REMOVED.stage, "reject_reason": REMOVED.reason, "reject_message": REMOVED.message}
        for name, value in {"shard": None, "caption": None, "note": None, **values}.items():
            field = table.schema.field(name)
            column = pc.if_else(removed, pa.scalar(value, field.type), table[name])
            table = table.set_column(table.schema.get_field_index(name), field, column)
        return table

    def removes_item(self, source: str, ordinal: int, key: str, uri: str) -> bool:
        """Tell if an item is removed as a whole."""
        values = dict(zip(MATCHED, (source, ordinal, key, uri), strict=True))
        return any(tuple(values[name] for name in names) in wanted for names, wanted in self.items.items())


def edits_path(generation: int) -> str:
    """Path of a generation of edits."""
    return f"edits/{generation:04d}.parquet"


def newest_edits(store: Store, known: Edits | None = None) -> Edits:
    """The newest generation of edits. ``known``: a generation that was read before, which saves a listing.

    IntegrityError if it is damaged, or if a later version wrote it.
    """
    if not store.lists_files:
        newest = newest_numbered(store, edits_path, _looks_like_parquet)
        return Edits() if newest is None else parse_edits(store, *newest)
    edits = Edits() if known is None else known
    if known is None:
        last = last_listed(store, "edits", EDITS)
        edits = edits if last is None else read_edits(store, last)
    while True:  # listings may lag, so the next name is asked for
        try:
            edits = read_edits(store, 0 if edits.generation is None else edits.generation + 1)
        except FileNotFoundError:
            return edits


def read_edits(store: Store, generation: int) -> Edits:
    """A generation of edits. FileNotFoundError if there is none."""
    return parse_edits(store, generation, store.get(edits_path(generation)))


def parse_edits(store: Store, generation: int, content: bytes) -> Edits:
    """The generation of edits in a file. IntegrityError if it is damaged, or if a later version wrote it."""
    where = f"{store.url}/{edits_path(generation)}"
    try:
        rows, facts = read_parquet(content), parquet_metadata(content)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{where} is damaged ({str(error).splitlines()[0]}): restore it from a copy") from error
    rows = rows.replace_schema_metadata(None)
    known = facts.get("format_version") == str(FORMAT_VERSION) and facts.get("action") in ACTIONS
    if not known or rows.schema != SCHEMA or set(facts) != set(FACTS):
        raise IntegrityError(
            f"{where} has edits that this program does not understand: use the newer Latentmill that wrote it"
        )
    return Edits(generation=generation, rows=rows, facts=facts)


def count_removed(store: Store, parts: Sequence[str], edits: Edits) -> int:
    """Number of rows in parts of an index that are removed."""
    return sum(len(ids) for ids in _removed_ids(store, parts, edits))


def removed_ids(store: Store, parts: Sequence[str], edits: Edits, limit: int) -> list[str] | None:
    """Ids of the rows in parts of an index that are removed, sorted; None if there are more than ``limit``."""
    found: list[str] = []
    for ids in _removed_ids(store, parts, edits):
        if len(found) + len(ids) > limit:
            return None
        found += ids.to_pylist()
    return sorted(found)


def _removed_ids(store: Store, parts: Sequence[str], edits: Edits) -> Iterator[pa.ChunkedArray]:
    """Yield the ids of some removed rows after the other, with few rows in memory at a time."""
    if len(edits.rows):
        for content in map_concurrently(store.get, parts, LARGE_REQUESTS):
            for rows in parquet_batches(content, edits.columns, ROWS_AT_ONCE):
                yield rows["id"].filter(edits.is_removed(rows))


def _looks_like_parquet(content: bytes) -> bool:
    return content.startswith(b"PAR1")


def _is_in(column: pa.ChunkedArray, values: frozenset[Any] | set[Any]) -> pa.Array:
    found = pc.is_in(column, value_set=pa.array(list(values), column.type))
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

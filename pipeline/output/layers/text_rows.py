"""The rows of a text layer: one for every distinct string."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.index_parts import Portion, RowFormat
from pipeline.output.layers.text_card import TextArray, TextCard
from pipeline.output.members import CHECKSUM, SPAN

ID = "text_id"
ORDER = ((ID, "ascending"),)
"""Order of the rows of a unit."""


def text_schema(card: TextCard) -> pa.Schema:
    """Every column of a layer's unit metadata and index, in order. ``pipeline/text/README.md`` describes them."""
    text, number = pa.string(), pa.int64()
    columns = [(ID, text), ("shard", text), ("dtype", text), ("num_tokens", pa.int32()), ("truncated", pa.bool_())]
    for array in card.arrays:
        columns += [(column(array, name), pa.int32()) for name in ("rows", "length")]
        columns += [(column(array, name), number) for name in SPAN]
        columns += [(column(array, CHECKSUM), pa.uint32())]
    outcome = [(name, text) for name in ("reject_stage", "reject_reason", "reject_message")]
    return pa.schema([*columns, ("encode_path", text), *outcome, ("recipe", text)])


def text_rows(card: TextCard) -> RowFormat:
    """The format of a layer's rows."""
    prefixes = tuple(column(array, "") for array in card.arrays)
    return RowFormat(schema=text_schema(card), split=_split, id=ID, key=ID, arrays=prefixes)


def column(array: TextArray, name: str) -> str:
    """The column of an array for a name such as ``rows`` or ``offset``."""
    return f"{array.name}_{name}"


def _split(rows: pa.Table) -> Iterator[Portion]:
    is_stored = rows["shard"].is_valid()
    yield Portion("samples", "", "", rows.filter(is_stored))
    yield Portion("rejects", "", "", rows.filter(pc.invert(is_stored)))

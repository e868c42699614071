"""Rows of removed samples and items: which of them still have data, and what is left of them after a purge."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reject
from pipeline.output.edits.edits import REMOVED, Edits

PURGED = Reject(REMOVED.stage, REMOVED.reason, "it was removed from this output, and a purge has deleted its data")
"""Reject that the row of every removed window becomes."""
IDENTITY = ("id", "source", "ordinal", "window", "group", "recipe")
"""Columns that a purge keeps. The key of the row becomes its id, because keys are names of files or URLs."""
DATA_MARK = "uri"
"""Column that every row has until a purge takes it."""


def columns_to_look_at(edits: Edits) -> list[str]:
    """The columns that ``has_purgeable_data`` needs."""
    return list(dict.fromkeys([*edits.columns, DATA_MARK]))


def has_purgeable_data(table: pa.Table, edits: Edits) -> pa.Array:
    """Boolean [rows]: True for rows, of any outcome, that are removed and still have data."""
    if not len(edits.rows) or not len(table):
        return pa.array(np.zeros(len(table), dtype=bool))
    return pc.and_(edits.is_removed(table), _one_array(table[DATA_MARK].is_valid()))


def without_data(table: pa.Table, purged: pa.Array) -> pa.Table:
    """The table in which some rows are rejects that say no more than which window they were. purged: boolean [rows]."""
    numbers = pc.if_else(purged, pa.scalar(None, pa.int64()), pa.array(np.arange(len(table))))
    values = {"key": table["id"], "reject_stage": PURGED.stage, "reject_reason": PURGED.reason}
    values |= {"reject_message": PURGED.message}
    columns = []
    for field in table.schema:
        column = table[field.name]
        if field.name in values:
            value = values[field.name]
            column = pc.if_else(purged, pa.scalar(value, field.type) if isinstance(value, str) else value, column)
        elif field.name not in IDENTITY:
            column = column.take(numbers)  # null where the number is
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=table.schema)


def is_purged(table: pa.Table) -> pa.ChunkedArray:
    """Boolean [rows]: True for the rows that ``without_data`` has left. It needs the columns of rejects and ``uri``."""
    return pc.and_(pc.fill_null(pc.equal(table["reject_reason"], PURGED.reason), False), table[DATA_MARK].is_null())


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

"""Rejects as columns of unit metadata and index."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NAME_SEPARATOR

COLUMNS = ("reject_stage", "reject_reason")


def reject_names(table: pa.Table) -> pa.ChunkedArray:
    """``Reject.name`` of every row of a table that has ``COLUMNS``; null where a row is no reject."""
    stages, reasons = (table[name] for name in COLUMNS)
    return pc.binary_join_element_wise(stages, reasons, NAME_SEPARATOR)

"""Makes the parts of one range from the metadata of its units."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.output.index import OutputTotals
from pipeline.output.index_parts import OUTCOMES, Part, PartWriter, RowFormat
from pipeline.output.ranges.cut import IndexRange, RangeUnit
from pipeline.output.ranges.record import RangeRecord, record_path, write_record
from pipeline.output.schema import ROW_ORDER
from pipeline.output.unit_metadata import unit_metadata_facts
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from stvae.file_identity import sha256_digest

ROWS_AT_ONCE = 16_384
"""Number of rows of unit metadata that are sorted into parts together."""


def build_range(store: Store, row_format: RowFormat, wanted: IndexRange) -> dict[str, Any]:
    """Make the parts of a range and record them; the record as plain values. The work of one task.

    The metadata of the units is read once, with few rows in memory at a time. The parts stay on local disk until all are
    complete, since the hash of their content names their folder: equal metadata always gives equal files.
    """
    shards: dict[str, int] = {}
    totals = OutputTotals()
    with contextlib.ExitStack() as stack:
        units = _noted(_read_units(store, wanted), shards, totals)
        counts, parts = write_parts(units, row_format, lambda: stack.enter_context(store.scratch()))
        folder = put_parts(store, {part.name: part.path for part in parts}) if parts else ""
    record = RangeRecord(
        units=wanted.digest,
        folder=folder,
        parts=[(part.outcome, part.group, part.bucket, part.name) for part in parts],
        num_rows={outcome: counts[outcome] for outcome in OUTCOMES},
        shards=shards,
        totals=totals,
    )
    record = write_record(store, record_path(wanted, row_format), record)
    failpoint(Failpoint.INDEX_RANGE_RECORDED)
    return record.to_json()


def write_parts(
    units: Iterable[tuple[RangeUnit, pa.Table]], row_format: RowFormat, new_path: Callable[[], Path]
) -> tuple[Counter[str], list[Part]]:
    """Write the parts of a range to local files; the number of rows of each outcome, and the files.

    ``units``: units with their metadata in the order of the range, which are consumed one after the other.
    """
    writer = PartWriter(row_format, new_path)
    portion: list[pa.Table] = []
    for _, same_items in itertools.groupby(units, key=lambda pair: pair[0].items):
        portion.append(_merged(list(same_items)))
        if sum(table.num_rows for table in portion) >= ROWS_AT_ONCE:
            writer.add(_with_all_columns(portion, row_format.schema))
            portion = []
    writer.add(_with_all_columns(portion, row_format.schema))
    return writer.counts, writer.close()


def put_parts(store: Store, files: Mapping[str, Path | bytes]) -> str:
    """Upload the files of an index by name; their folder, whose name is a hash of their content."""
    folder = f"index/{_digest(files)}"
    for name, content in files.items():
        store.put_new(f"{folder}/{name}", content)
        failpoint(Failpoint.INDEX_PART_WRITTEN)
    return folder


def _read_units(store: Store, wanted: IndexRange) -> Iterator[tuple[RangeUnit, pa.Table]]:
    def read(unit: RangeUnit) -> tuple[RangeUnit, pa.Table]:
        try:
            return unit, read_parquet(store.get(unit.path))
        except FileNotFoundError as error:
            raise StoreError(
                f"{store.url}/{unit.path} is gone: if a purge has replaced it meanwhile, run the same command again"
            ) from error

    return map_concurrently(read, wanted.units)


def _noted(
    units: Iterable[tuple[RangeUnit, pa.Table]], shards: dict[str, int], totals: OutputTotals
) -> Iterator[tuple[RangeUnit, pa.Table]]:
    """Pass the units on, after adding their facts to ``totals`` and the size in bytes of their shard to ``shards``."""
    for unit, metadata in units:
        facts = unit_metadata_facts(metadata)
        totals.add(facts)
        if "shard" in facts:
            shards[facts["shard"]] = int(facts["size_bytes"])
        yield unit, metadata


def _merged(units: list[tuple[RangeUnit, pa.Table]]) -> pa.Table:
    """Join the rows of units over the same items, earliest unit first, without rejects that a later unit tried again."""
    if len(units) == 1:
        return units[0][1].replace_schema_metadata(None)
    tried_again = pa.array([], pa.string())
    kept: list[pa.Table] = []
    for unit, metadata in reversed(units):
        rows = metadata.replace_schema_metadata(None)
        kept.append(rows.filter(pc.invert(pc.is_in(rows["id"], tried_again))))
        if unit.retries:
            tried_again = pa.concat_arrays([tried_again, rows["id"].combine_chunks()])
    merged = pa.concat_tables(kept, promote_options="permissive")
    return merged.sort_by([key for key in ROW_ORDER if key[0] in merged.column_names])


def _with_all_columns(tables: list[pa.Table], full_schema: pa.Schema) -> pa.Table:
    """Join tables; columns that only later generations of the plan have become null in the rows of earlier ones."""
    return pa.concat_tables([full_schema.empty_table(), *tables], promote_options="permissive").combine_chunks()


def _digest(files: Mapping[str, Path | bytes]) -> str:
    """16 hex digits of a hash over the content of the files in the order of their names."""
    digest = hashlib.sha256()
    for _, content in sorted(files.items()):
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            digest.update(sha256_digest(file))
    return digest.hexdigest()[:16]

"""``index/ranges/<units>-<format>.json``: the parts that were made of a range. It is written after the parts.

A later index, or the same one after a kill, takes over the parts of a range that has a record, and reads none of the
metadata of its units.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.output import index_parts
from pipeline.output.dataset import damaged, parse_record
from pipeline.output.index import OutputTotals
from pipeline.output.index_parts import RowFormat
from pipeline.output.ranges.cut import IndexRange
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.store import Store

FOLDER = "index/ranges"


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeRecord:
    """The parts of a range, and what an index needs of its units."""

    units: str
    """``IndexRange.digest`` of the range."""
    folder: str
    """Folder of the parts, named by a hash of their content; empty for a range without rows."""
    parts: list[tuple[str, str, str, str]]
    """Outcome, group, bucket and file name of each part."""
    num_rows: dict[str, int]
    """Number of rows by outcome."""
    shards: dict[str, int]
    """Size in bytes of the shard of each unit that has one."""
    totals: OutputTotals

    @property
    def paths(self) -> list[str]:
        """Paths of all parts."""
        return [f"{self.folder}/{name}" for *_, name in self.parts]

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return {"format_version": FORMAT_VERSION} | dataclasses.asdict(self) | {"totals": self.totals.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RangeRecord:
        """The record that ``to_json`` wrote."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        parts = [(outcome, group, bucket, name) for outcome, group, bucket, name in values["parts"]]
        return cls(**fields | {"parts": parts, "totals": OutputTotals(**values["totals"])})


def record_path(wanted: IndexRange, row_format: RowFormat) -> str:
    """Path of the record of a range whose parts have the columns of ``row_format``."""
    columns = ",".join(f"{field.name}:{field.type}" for field in row_format.schema)
    limits = f"{index_parts.ROWS_PER_PART} {index_parts.ROWS_WAITING}"
    digest = hashlib.sha256(f"{columns}\n{limits}".encode()).hexdigest()[:8]
    return f"{FOLDER}/{wanted.digest}-{digest}.json"


def read_records(
    store: Store, ranges: Sequence[IndexRange], row_format: RowFormat
) -> Iterator[tuple[IndexRange, RangeRecord]]:
    """Yield the ranges that were made before, as far as a listing shows, with their records."""
    listed = store.list_files("index")
    recorded = [(each, path) for each in ranges if (path := record_path(each, row_format)) in listed]
    for (each, _), record in zip(
        recorded, map_concurrently(lambda pair: read_record(store, pair[1]), recorded), strict=True
    ):
        if record.units == each.digest and all(path in listed for path in record.paths):
            yield each, record


def read_record(store: Store, path: str) -> RangeRecord:
    """Read a record. IntegrityError if it cannot be understood."""
    where = f"{store.url}/{path}"
    known = ["format_version", *(field.name for field in dataclasses.fields(RangeRecord))]
    values = parse_record(store.get(path), where, known)
    try:
        return RangeRecord.from_json(values)
    except (TypeError, ValueError) as error:
        raise damaged(where, error) from error


def write_record(store: Store, path: str, record: RangeRecord) -> RangeRecord:
    """Write a record unless there is one; the one that is there then."""
    if store.put_new(path, json.dumps(record.to_json(), sort_keys=True).encode()):
        return record
    return read_record(store, path)

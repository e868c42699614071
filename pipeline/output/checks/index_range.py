"""Checks a range of the index: makes its parts again on local disk, and compares them with those that are stored."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.output.checks.tables import read_or_describe
from pipeline.output.index_parts import OUTCOMES, RowFormat
from pipeline.output.ranges.build import write_parts
from pipeline.output.ranges.cut import IndexRange, RangeUnit
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def check_range(
    store: Store, row_format: RowFormat, where: str, task: tuple[IndexRange, Mapping[str, list[str]]]
) -> dict[str, Any]:
    """Check that the parts of a range have the rows of its units, no more and no fewer. The work of one task.

    ``where``: path of the index, which problems name. ``task``: the range, and the paths of its parts by outcome. Returns
    its ``problems``: path and description of each. Unit metadata that cannot be read is left out.
    """
    wanted, stored = task
    problems: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        units = _readable_units(store, wanted)
        _, parts = write_parts(units, row_format, lambda: stack.enter_context(store.scratch()))
        for outcome in OUTCOMES:
            local = [part.path for part in parts if part.outcome == outcome]
            comparison = _Comparison(store, row_format, problems)
            problems += [(where, what) for what in comparison.differences(local, stored[outcome])]
    return {"problems": problems}


def _readable_units(store: Store, wanted: IndexRange) -> Iterator[tuple[RangeUnit, pa.Table]]:
    tables = map_concurrently(partial(read_or_describe, store), [unit.path for unit in wanted.units])
    for unit, metadata in zip(wanted.units, tables, strict=True):
        if not isinstance(metadata, str):
            yield unit, metadata


class _Comparison:
    """Compares parts as they should be with parts as they are."""

    def __init__(self, store: Store, row_format: RowFormat, problems: list[tuple[str, str]]) -> None:
        """problems: gets parts that cannot be read."""
        self._store = store
        self._id, self._key = row_format.id, row_format.key
        self._no_rows = pa.schema([(name, pa.string()) for name in {self._id: None, self._key: None}]).empty_table()
        self._problems = problems

    def differences(self, local: list[Path], stored: list[str]) -> Iterator[str]:
        """Describe each difference between parts as they should be (``local``) and as they are (``stored``)."""
        missing: dict[str, str] = {}
        extra: dict[str, str] = {}
        for local_path, path in itertools.zip_longest(local, stored):
            if local_path and path and self._same_bytes(local_path, path):
                continue  # always the case, unless another version of Arrow wrote the part
            expected = read_parquet(local_path.read_bytes()) if local_path else self._no_rows
            found = self._read(path) if path else self._no_rows
            expected = _without_later_columns(expected, found)
            if not expected.equals(found):
                if len(expected) and len(found) and expected.column_names != found.column_names:
                    yield f"{path} does not have the columns that it should"
                row_of_id = pc.index_in(expected[self._id], value_set=found[self._id])
                is_expected = pc.is_in(found[self._id], value_set=expected[self._id])
                missing |= self._keys(expected.filter(pc.is_null(row_of_id)))
                extra |= self._keys(found.filter(pc.invert(is_expected)))
                yield from self._differing_rows(
                    expected.filter(pc.is_valid(row_of_id)), found.take(row_of_id.drop_null())
                )
        # where rows are missing, later rows move from one part to another; they are not missing themselves
        for name in missing.keys() - extra.keys():
            yield f"the row of {name} ({missing[name]}) is missing"
        for name in extra.keys() - missing.keys():
            yield f"{name} is in no unit metadata"

    def _read(self, path: str) -> pa.Table:
        found = read_or_describe(self._store, path)
        if isinstance(found, str):
            self._problems.append((path, found))
            return self._no_rows
        return found

    def _same_bytes(self, local_path: Path, path: str) -> bool:
        try:
            return self._store.get(path) == local_path.read_bytes()
        except (FileNotFoundError, IntegrityError):
            return False

    def _differing_rows(self, expected: pa.Table, found: pa.Table) -> Iterator[str]:
        """Name each row that differs, with its columns. Both tables have the same ids in the same order."""
        differing: dict[int, list[str]] = {}
        for name in expected.column_names:
            if name not in found.column_names or name.startswith("meta"):
                continue  # user columns may have types that Arrow cannot compare
            a, b = expected[name], found[name]
            if pa.types.is_nested(a.type):
                pairs = zip(a.to_pylist(), b.to_pylist(), strict=True)
                differs: pa.Array | pa.ChunkedArray = pa.array([one != other for one, other in pairs], pa.bool_())
            else:
                differs = pc.fill_null(pc.not_equal(a, b), pc.xor(a.is_null(), b.is_null()))
            for row in pc.indices_nonzero(differs).to_pylist():
                differing.setdefault(row, []).append(name)
        for row, names in differing.items():
            yield f"the row of {expected[self._id][row]} ({expected[self._key][row]}) differs in {', '.join(names)}"

    def _keys(self, rows: pa.Table) -> dict[str, str]:
        return dict(zip(rows[self._id].to_pylist(), rows[self._key].to_pylist(), strict=True))


def _without_later_columns(expected: pa.Table, found: pa.Table) -> pa.Table:
    """Drop columns without any value that ``found`` lacks: an earlier program, which did not know them, wrote it."""
    names = set(expected.column_names) - set(found.column_names)
    return expected.drop_columns([name for name in names if expected[name].null_count == len(expected)])

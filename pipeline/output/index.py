"""The index: every sidecar of a finished job compacted into a few Parquet files that readers open at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.output.totals import Totals
from pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """One compaction: paths of its parts, relative to the output."""

    generation: int
    samples: list[str]
    rejects: list[str]
    skips: list[str]
    shards: str
    num_samples: int
    num_rejects: int
    num_skips: int
    totals: Totals


def newest_index(store: Store) -> Index | None:
    """The newest finished compaction, or None while the first job is still running."""
    found = [path for path in store.list_files("index") if path.endswith(".json")]
    if not found:
        return None
    return _from_json(store.get(max(found)))


def _from_json(content: bytes) -> Index:
    values: dict[str, Any] = json.loads(content)
    values.pop("format_version")
    return Index(**values | {"totals": Totals(**values["totals"])})

"""The flow of an export: unit by unit, resumable, complete once ``export.json`` exists.

Every unit is written into a scratch folder and then put under its final names. A record of the unit follows, so that
running the same command again writes only the units without a record.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import ConfigError, IntegrityError
from pipeline.export.target import ExportedSample, ExportTarget, exported_columns
from pipeline.loader import LatentDataset
from pipeline.output.unit_metadata import unit_of
from pipeline.progress.formatting import number
from pipeline.storage.store import Store
from stvae.normalization import normalize

COMPLETE = "export.json"
"""File whose existence says that an export is complete."""
RECORDS = ".latentmill"
"""Folder of an export with its settings and a record per unit. Readers pass over names that begin with a dot."""
SAMPLES_AT_ONCE = 64
"""Samples whose latents are read and normalized together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSummary:
    """Totals of a complete export."""

    url: str
    target: str
    units: int
    samples: int
    size_bytes: int
    """Size of all exported files."""


def export_dataset(
    data: LatentDataset, target: ExportTarget, store: Store, say: Callable[[str], None]
) -> ExportSummary:
    """Write every sample of ``data`` into ``store`` as ``target`` lays it out. Safe to call again after a crash.

    ConfigError if the target cannot hold the dataset or ``store`` holds another export.
    """
    target.check(data)
    _agree_on_settings(store, {"target": target.name, "dataset": data.store.url, "samples": data.samples.digest})
    rows_by_unit = _rows_by_unit(data)
    records: dict[str, dict[str, int]] = {}
    for position, (unit, rows) in enumerate(rows_by_unit.items(), 1):
        records[unit] = _read_record(store, unit) or _export_unit(data, target, store, unit, rows)
        say(f"unit {position} of {len(rows_by_unit)}: {number(records[unit]['samples'], 'sample')}")
    index_bytes = _put_folder(store, lambda folder: target.write_indexes(sorted(rows_by_unit), folder))
    summary = ExportSummary(
        url=store.url,
        target=target.name,
        units=len(records),
        samples=sum(record["samples"] for record in records.values()),
        size_bytes=index_bytes + sum(record["size_bytes"] for record in records.values()),
    )
    if summary.samples != len(data):
        raise IntegrityError(f"{store.url}: {summary.samples} samples were exported, the dataset has {len(data)}")
    values = {"target": target.name, "units": summary.units, "samples": summary.samples, "bytes": summary.size_bytes}
    store.put_new(COMPLETE, json.dumps(values, indent=1).encode())
    return summary


def _agree_on_settings(store: Store, settings: dict[str, Any]) -> None:
    path, content = f"{RECORDS}/settings.json", json.dumps(settings, indent=1, sort_keys=True).encode()
    if store.put_new(path, content):
        return
    recorded = json.loads(store.get(path))
    differing = [
        f"{name}: {recorded.get(name)} -> {value}" for name, value in settings.items() if recorded.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{store.url} holds another export; give another --output. It differs in:\n  " + "\n  ".join(differing)
        )


def _rows_by_unit(data: LatentDataset) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Numbers of the samples of each unit, in the order of the index; units sorted by name."""
    shards = data.columns["shard"].combine_chunks().dictionary_encode()
    codes = shards.indices.to_numpy()
    names = [unit_of(shard) for shard in shards.dictionary.to_pylist()]
    for name in names:
        if "/" in name:
            raise IntegrityError(f"{data.store.url}: {name!a} is not the name of a unit")
    return {names[code]: np.flatnonzero(codes == code) for code in sorted(range(len(names)), key=names.__getitem__)}


def _read_record(store: Store, unit: str) -> dict[str, int] | None:
    try:
        record: dict[str, int] = json.loads(store.get(f"{RECORDS}/units/{unit}.json"))
    except FileNotFoundError:
        return None
    return record


def _export_unit(
    data: LatentDataset, target: ExportTarget, store: Store, unit: str, rows: np.ndarray[Any, np.dtype[np.int64]]
) -> dict[str, int]:
    size_bytes = _put_folder(store, lambda folder: target.write_unit(unit, _read_samples(data, rows), folder))
    record = {"samples": len(rows), "size_bytes": size_bytes}
    store.put_new(f"{RECORDS}/units/{unit}.json", json.dumps(record).encode())
    return record


def _put_folder(store: Store, write: Callable[[Path], None]) -> int:
    """Put every file that ``write`` makes in a scratch folder; their size in bytes.

    IntegrityError if another file of a different size already has one of the names.
    """
    total_bytes = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name, size_bytes = path.relative_to(folder).as_posix(), path.stat().st_size
            if not store.put_new(name, path) and store.size(name) != size_bytes:
                raise IntegrityError(f"{store.url}/{name} is not what this export writes; give another --output")
            total_bytes += size_bytes
    return total_bytes


def _read_samples(data: LatentDataset, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[ExportedSample]:
    names = ["id", *exported_columns(data)]
    for start in range(0, len(rows), SAMPLES_AT_ONCE):
        part = rows[start : start + SAMPLES_AT_ONCE]
        columns = data.columns.select(names).take(part).to_pylist()
        for values, raw_Cthw in zip(columns, data.read(part), strict=True):
            latents_BCthw = torch.from_numpy(raw_Cthw.astype(np.float32))[None]
            yield ExportedSample(
                id=values.pop("id"), latents_Cthw=normalize(latents_BCthw, data.card)[0].numpy(), columns=values
            )

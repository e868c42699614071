"""The flow of an export: unit by unit, resumable, complete once ``export.json`` exists.

Every unit is written into a scratch folder and then put under its final names. A record of the unit follows, so that
running the same command again writes only the units without a record. The files that list all units come last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, IntegrityError
from pipeline.executor.ray_map import map_on_ray
from pipeline.export.captions import check_caption, check_embeddings
from pipeline.export.options import ExportOptions
from pipeline.export.summary import ExportSummary
from pipeline.export.target import ExportTarget
from pipeline.export.targets.registry import find_target
from pipeline.export.unit_export import (
    RECORDS,
    ExportSettings,
    Rows,
    UnitExport,
    UnitExporter,
    exporter_of,
    open_samples,
    put_folder,
    read_part,
)
from pipeline.loader import LatentDataset
from pipeline.output.layout.export_records import record_export
from pipeline.output.unit_metadata import unit_of
from pipeline.storage.store import Store

COMPLETE = "export.json"
"""File whose existence says that an export is complete."""
UNFINISHED = "EXPORT-IS-NOT-COMPLETE.txt"
"""File that says so to people until then. Readers that search folders for data cannot be kept from an unfinished export."""

Executor = Callable[[ExportSettings, list[tuple[str, Rows]]], Iterator[UnitExport]]
"""Exports units, each with the numbers of its samples, in any order."""


def export_dataset(
    data: LatentDataset,
    target: ExportTarget,
    settings: ExportSettings,
    store: Store,
    execute: Executor,
    progress: Callable[[ExportSummary, int], None],
) -> ExportSummary:
    """Write every sample of ``data`` into ``store`` as ``target`` lays it out. Safe to call again after a crash.

    progress: is called after every unit, with the totals so far and the number of units that are done.
    ConfigError if the target cannot hold the dataset or ``store`` holds another export.
    """
    _begin(store, settings)
    record_export(data.store, store.url, target.name, data.version.name, len(data))
    units = rows_by_unit(data)
    summary = ExportSummary(url=store.url, target=target.name, units=len(units), left_out={})
    for done, outcome in enumerate(execute(settings, units), 1):
        summary.add(outcome)
        progress(summary, done)
    _check_complete(summary, len(data))
    parts = ((unit, read_part(store, unit)) for unit, _ in units)
    files, size_bytes = put_folder(store, lambda folder: target.write_indexes(parts, folder, store.folder or store.url))
    summary.files, summary.size_bytes = summary.files + files, summary.size_bytes + size_bytes
    store.put_new(COMPLETE, json.dumps(_description(settings, summary), indent=1, sort_keys=True).encode())
    store.delete(UNFINISHED)
    return summary


def open_export(url: str, target: str, options: ExportOptions) -> tuple[LatentDataset, ExportTarget]:
    """Open an output for an export. ConfigError if the target cannot hold it or an option names what it has not."""
    found = find_target(target)
    data = open_samples(url, options)
    if not len(data):
        raise ConfigError(
            f"{url} has no samples to export" + (f" that pass {options.where!r}" if options.where else "")
        )
    check_caption(data, options)
    if found.latents == "moments" and data.recipe.store != "moments":
        raise ConfigError(
            f"{found.name} holds mean and log-variance, and {url} was made with --store mean; choose another target, or "
            "encode with --store moments"
        )
    if found.text == "none" and options.text is not None:
        raise ConfigError(f"{found.name} holds no text embeddings; leave out --text")
    if found.text == "must" and options.text is None:
        raise ConfigError(f"{found.name} needs text embeddings: give --text LAYER (jobs/encode_text.py makes one)")
    check_embeddings(data, options)
    found.check(data, options)
    return data, found


def export_locally(
    settings: ExportSettings, units: list[tuple[str, Rows]], data: LatentDataset | None = None
) -> Iterator[UnitExport]:
    """Export the units in this process. data: the output, if it is open already."""
    exporter = UnitExporter.of(settings, data)
    for unit, rows in units:
        yield exporter.export(unit, rows)


def export_on_ray(address: str, settings: ExportSettings, units: list[tuple[str, Rows]]) -> Iterator[UnitExport]:
    """Export the units with tasks on the cluster at ``address``."""
    for row in map_on_ray(address, partial(_export_unit, settings), units):
        yield UnitExport(**row)


def _export_unit(settings: ExportSettings, unit: tuple[str, Rows]) -> dict[str, Any]:
    return exporter_of(settings).export(*unit).to_json()


def rows_by_unit(data: LatentDataset) -> list[tuple[str, Rows]]:
    """Numbers of the samples of each unit, in the order of the index; units sorted by name."""
    shards = data.samples.columns(["shard"])["shard"].combine_chunks().dictionary_encode()
    codes: npt.NDArray[np.int32] = shards.indices.to_numpy()
    names = [unit_of(shard) for shard in shards.dictionary.to_pylist()]
    for name in names:
        if "/" in name:
            raise IntegrityError(f"{data.store.url}: {name!a} is not the name of a unit")
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    rows = {name: order[bounds[code] : bounds[code + 1]] for code, name in enumerate(names)}
    return sorted(rows.items())


def _begin(store: Store, settings: ExportSettings) -> None:
    """Record what is exported, or check that the export that is there is the same one."""
    path, wanted = f"{RECORDS}/settings.json", _settings(settings)
    content = json.dumps(wanted, indent=1, sort_keys=True).encode()
    if store.size(COMPLETE) is None:
        store.put_new(UNFINISHED, b"This export is not complete: export.json is missing. Run the same command again.\n")
    if store.put_new(path, content):
        return
    recorded = json.loads(store.get(path))
    differing = [
        f"{name}: {recorded.get(name)} -> {value}" for name, value in wanted.items() if recorded.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{store.url} holds another export; give another --output. It differs in:\n  " + "\n  ".join(differing)
        )


def _settings(settings: ExportSettings) -> dict[str, Any]:
    """The values that must not change while an export is made. Options that have their default are left out."""
    defaults = ExportOptions().to_json()
    options = {name: value for name, value in settings.options.to_json().items() if value != defaults[name]}
    return {"target": settings.target, "dataset": settings.dataset, "samples": settings.samples, **options}


def _description(settings: ExportSettings, summary: ExportSummary) -> dict[str, Any]:
    counts = {
        name: getattr(summary, name) for name in ("units", "samples", "rows", "files", "captions_left", "left_out")
    }
    return _settings(settings) | counts | {"bytes": summary.size_bytes}


def _check_complete(summary: ExportSummary, samples: int) -> None:
    found = summary.samples + sum(summary.left_out.values())
    if found != samples:
        raise IntegrityError(f"{summary.url}: {found} samples were exported or left out, the dataset has {samples}")

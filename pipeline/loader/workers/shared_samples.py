"""Samples that are pickled as the path of files, which worker processes map, and not as the whole index.

The process that pickles samples first writes the files to the folder for temporary files, and removes them when it ends.
Columns that are mapped from a cache stay there. Where the files are gone, for example on another machine, the samples are
opened anew, from the same version of the output.
"""

from __future__ import annotations

import copyreg
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.loader.catalog import BucketShape, open_catalog
from pipeline.loader.samples import Phase, Samples, Where, select_samples
from pipeline.loader.workers.column_files import map_columns, write_columns
from pipeline.loader.workers.worker_files import map_array, write_for_workers
from pipeline.output.edits.version import OutputVersion
from pipeline.storage.joined_tables import read_table
from pipeline.storage.store import Store
from stvae.card import Card

ARRAYS = ("rows", "start_frames", "keys", "codes")
"""The arrays of ``Samples``."""


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """The output, filter and joined tables that samples are opened from."""

    store: Store
    version: OutputVersion
    card: Card
    where: Where | Mapping[int, Where]
    join: Sequence[str | pa.Table | None]
    """URLs and tables; None for a table that was not pickled."""
    frames: int | None
    frames_stride: int | None
    cache: Path | None

    def open(self) -> Samples:
        """Read and select the samples."""
        catalog = open_catalog(self.store, self.version, self.cache)
        for n, extra in enumerate(self.join):
            name = extra if isinstance(extra, str) else f"table {n} of join="
            if extra is None:
                raise ConfigError(
                    f"{name} is only in the memory of the process that opened {self.store.url}; write it to a Parquet file "
                    "and give its URL"
                )
            catalog = catalog.join(read_table(extra, self.store) if isinstance(extra, str) else extra, name)
        samples = select_samples(catalog, self.card, self.where, self.frames, self.frames_stride)
        return dataclasses.replace(samples, files=SampleFiles(self))

    def without_tables(self) -> SampleSource:
        """The same without tables in memory."""
        return dataclasses.replace(self, join=[extra if isinstance(extra, str) else None for extra in self.join])


class SampleFiles:
    """The files that hold samples for other processes, written when they are needed first."""

    def __init__(self, source: SampleSource, folder: Path | None = None) -> None:
        self.source = source
        self._folder = folder

    def write(self, samples: Samples) -> Path | None:
        """The folder of the files; None, with a warning, if they cannot be written."""
        if self._folder is not None and self._folder.is_dir():
            return self._folder
        self._folder = write_for_workers(self, partial(_write, samples=samples), self.source.store.url)
        return self._folder


def restore_samples(folder: Path | None, source: SampleSource) -> Samples:
    """Map the samples from their files. Without the files, open them again."""
    try:
        if folder is None:
            return source.open()
        return dataclasses.replace(_map(folder), files=SampleFiles(source, folder))
    except FileNotFoundError:
        return source.open()


def _reduce(samples: Samples) -> tuple[Any, ...]:
    files = samples.files
    assert isinstance(files, SampleFiles), "the samples of a LatentDataset have files"
    folder = files.write(samples)
    return restore_samples, (folder, files.source if folder is None else files.source.without_tables())


copyreg.pickle(Samples, _reduce)


def _write(folder: Path, samples: Samples) -> None:
    mapped = [] if samples.folder is None else map_columns(samples.folder)
    write_columns(folder, ((name, samples.table[name]) for name in samples.table.column_names if name not in mapped))
    for name in ARRAYS:
        if (values := getattr(samples, name)) is not None:
            np.save(folder / f"{name}.npy", values)
    for n, phase in enumerate(samples.phases):
        np.save(folder / f"phase-{n}.npy", phase.members)
    facts = {
        "phases": [(phase.first_epoch, phase.where) for phase in samples.phases],
        "buckets": [dataclasses.asdict(shape) for shape in samples.buckets],
        "columns": samples.table.column_names,
        "digest": samples.digest,
        "folder": None if samples.folder is None else str(samples.folder),
        "where": samples.where,
    }
    (folder / "samples.json").write_text(json.dumps(facts))


def _map(folder: Path) -> Samples:
    facts = json.loads((folder / "samples.json").read_text())
    cache = None if facts["folder"] is None else Path(facts["folder"])
    columns = ({} if cache is None else map_columns(cache)) | map_columns(folder)
    arrays = {name: map_array(path) if (path := folder / f"{name}.npy").exists() else None for name in ARRAYS}
    return Samples(
        table=pa.table({name: columns[name] for name in facts["columns"]}),
        buckets=[BucketShape.from_plain(shape) for shape in facts["buckets"]],
        digest=facts["digest"],
        folder=cache,
        where=facts["where"],
        phases=tuple(
            Phase(first_epoch=epoch, members=map_array(folder / f"phase-{n}.npy"), where=where)
            for n, (epoch, where) in enumerate(facts["phases"])
        ),
        **arrays,  # type: ignore[arg-type]
    )

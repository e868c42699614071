"""The export of one unit: its samples are read, written by the target into a scratch folder, and put under final names."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import IntegrityError
from pipeline.export.captions import caption_columns, captions_left, captions_of
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, exported_columns
from pipeline.export.targets.registry import find_target
from pipeline.loader import LatentDataset
from pipeline.loader.text.captions import ChosenCaption
from pipeline.loader.text.reading import EmbeddedArray, read_texts
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.store import Store

RECORDS = ".latentmill"
"""Folder of an export with its settings, and a record and a part of the index per unit. Readers skip names with a dot."""
SAMPLES_AT_ONCE = 32
"""Samples whose latents are in memory together."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """The values from which every process of an export starts."""

    dataset: str
    """URL of the output that is exported."""
    samples: str
    """Digest of the exported samples, so that an export never mixes two states of a growing output."""
    target: str
    options: ExportOptions
    output: str
    version: str | None = None
    """Version of the output that was opened first, which numbers the samples; None for an output without an index."""
    single_writer: bool = False


@dataclass(kw_only=True, slots=True)
class UnitExport:
    """The outcome of one unit."""

    unit: str
    samples: int = 0
    """Number of samples of the output that were exported."""
    rows: int = 0
    """Number of exported samples: larger than ``samples`` if each caption is exported."""
    files: int = 0
    size_bytes: int = 0
    captions_left: int = 0
    """Number of captions of exported samples that are not exported."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of samples that were not exported, by reason."""

    def to_json(self) -> dict[str, Any]:
        """The record of the unit."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitExporter:
    """Exports units. Every process of an export has one."""

    data: LatentDataset
    target: ExportTarget
    store: Store
    options: ExportOptions

    @classmethod
    def of(cls, settings: ExportSettings, data: LatentDataset | None = None) -> UnitExporter:
        """Open the export, and the output unless ``data`` has it open already, since its index takes memory."""
        if data is None:
            options = dataclasses.replace(settings.options, version=settings.version or settings.options.version)
            data = open_samples(settings.dataset, options)
        # an index may have other numbers for the same samples than the unit metadata before it
        if data.samples.digest != settings.samples or data.version.name != settings.version:
            raise IntegrityError(
                f"{settings.dataset} has grown since this export was begun; run the same command again"
            )
        target = find_target(settings.target)
        target.check(data, settings.options)
        store = Store(settings.output, single_writer=settings.single_writer)
        return cls(data=data, target=target, store=store, options=settings.options)

    def export(self, unit: str, rows: Rows) -> UnitExport:
        """Export a unit and record it. Returns the record if there is one already."""
        if (recorded := read_record(self.store, unit)) is not None:
            return recorded
        outcome = UnitExport(unit=unit)
        part = b""

        def write(folder: Path) -> None:
            nonlocal part
            part = self._write(rows, outcome, folder)

        outcome.files, outcome.size_bytes = put_folder(self.store, write)
        self.store.put_new(_part_path(unit), part)
        self.store.put_new(_record_path(unit), json.dumps(outcome.to_json()).encode())
        return outcome

    def write_sample_of(self, rows: Rows, folder: Path) -> UnitExport:
        """Write some samples below a folder, for an estimate."""
        outcome = UnitExport(unit="estimate")
        self._write(rows, outcome, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        outcome.files, outcome.size_bytes = len(files), sum(path.stat().st_size for path in files)
        return outcome

    def _write(self, rows: Rows, outcome: UnitExport, folder: Path) -> bytes:
        """Let the target write a unit, unless all of its samples are left out."""
        samples = self._samples(rows, outcome)
        first = next(samples, None)
        if first is None:
            return b""
        return self.target.write_unit(outcome.unit, itertools.chain([first], samples), folder)

    def _samples(self, rows: Rows, outcome: UnitExport) -> Iterator[ExportedSample]:
        """Yield the exported samples of a unit, and count them and those that are left out in ``outcome``."""
        left_out: Counter[str] = Counter()
        for start in range(0, len(rows), SAMPLES_AT_ONCE):
            numbers = rows[start : start + SAMPLES_AT_ONCE]
            columns = self._columns(numbers)
            reasons = [self._refuse(values) for values in columns]
            left_out.update(reason for reason in reasons if reason is not None)
            kept = [n for n, reason in enumerate(reasons) if reason is None]
            yield from self._read(numbers[kept], [columns[n] for n in kept], outcome)
        outcome.left_out = dict(sorted(left_out.items()))

    def _columns(self, numbers: Rows) -> list[dict[str, Any]]:
        names = ["id", *exported_columns(self.data), *caption_columns(self.options)]
        table = self.data.samples.columns(list(dict.fromkeys(names)), numbers)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _refuse(self, columns: dict[str, Any]) -> str | None:
        if not captions_of(columns, self.options):
            return "no caption"
        return self.target.refuse(columns)

    def _read(self, numbers: Rows, columns: list[dict[str, Any]], outcome: UnitExport) -> Iterator[ExportedSample]:
        if not len(numbers):
            return
        card = self.data.card
        stored = self.data.read(numbers, latent="sample" if self.target.latents == "moments" else "mean")
        all_captions = [captions_of(values, self.options) for values in columns]
        texts = self._texts(numbers, all_captions)
        for values, captions, raw_Cthw in zip(columns, all_captions, stored, strict=True):
            outcome.samples += 1
            outcome.captions_left += captions_left(values, self.options)
            for position, caption in enumerate(captions):
                outcome.rows += 1
                yield ExportedSample(
                    id=values["id"] if len(captions) == 1 else f"{values['id']}-{position}",
                    stored_Cthw=raw_Cthw.astype(np.float32),
                    card=card,
                    caption=caption.text,
                    columns={name: values[name] for name in exported_columns(self.data)},
                    text=next(texts),
                )

    def _texts(self, numbers: Rows, captions: list[list[ChosenCaption]]) -> Iterator[dict[str, EmbeddedArray]]:
        """Yield the embedding of every caption of some samples: that of its likeliest form. Empty without a text layer."""
        layer = self.data.text
        if layer is None:
            yield from ({} for each in captions for _ in each)
            return
        table_rows = self.data.samples.rows[numbers].tolist()
        rows = []
        for table_row, each in zip(table_rows, captions, strict=True):
            for caption in each:
                forms = layer.captions.get(caption.name)
                form = None if forms is None else forms.likeliest(table_row, caption.element)
                if caption.text and (forms is None or form is None):
                    raise IntegrityError(f"the text layer '{layer.name}' has no embedding of '{caption.text[:80]}'")
                rows.append(layer.empty_row if forms is None or form is None else int(forms.rows[form]))
        yield from read_texts(self.data.store, layer, rows)


def read_record(store: Store, unit: str) -> UnitExport | None:
    """The record of a unit that is exported; None for others."""
    try:
        return UnitExport(**json.loads(store.get(_record_path(unit))))
    except FileNotFoundError:
        return None


def read_part(store: Store, unit: str) -> bytes:
    """The bytes that the target returned for a unit."""
    return store.get(_part_path(unit))


def put_folder(store: Store, write: Callable[[Path], None]) -> tuple[int, int]:
    """Put every file that ``write`` makes in a scratch folder; the number of files, and their size in bytes.

    IntegrityError if another file of a different size already has one of the names.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())

        def put(path: Path) -> int:
            name, size_bytes = path.relative_to(folder).as_posix(), path.stat().st_size
            if not store.put_new(name, path) and store.size(name) != size_bytes:
                raise IntegrityError(f"{store.url}/{name} is not what this export writes; give another --output")
            return size_bytes

        return len(paths), sum(map_concurrently(put, paths))


def _record_path(unit: str) -> str:
    return f"{RECORDS}/units/{unit}.json"


def _part_path(unit: str) -> str:
    return f"{RECORDS}/parts/{unit}"


def open_samples(url: str, options: ExportOptions) -> LatentDataset:
    """The samples that an export selects. Their index lies in a file without a name, mapped into memory as it is used."""
    with tempfile.TemporaryDirectory() as cache:
        return LatentDataset(url, where=options.where, text=options.text, version=options.version, cache=cache)


@lru_cache(maxsize=1)
def exporter_of(settings: ExportSettings) -> UnitExporter:
    """The exporter of this process."""
    return UnitExporter.of(settings)

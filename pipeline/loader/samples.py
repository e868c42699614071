"""Select the samples to train on: those of a catalog that pass a filter, whole or cut into windows. Reads no latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.loader.catalog import CODE, KEY, BucketShape, Catalog
from pipeline.loader.filters import make_filter
from pipeline.loader.schedule.keys import BucketCodes, Indices, Keys, digest_of, digest_of_parts
from stvae.card import Card

WINDOW_COLUMNS = ("start_s", "end_s", "num_frames")
"""Columns of a clip that those of its windows follow from."""

Where: TypeAlias = str | pc.Expression | None
"""A filter, or None for all samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The samples of some epochs, where the filter changes between epochs."""

    first_epoch: int
    """Epoch in which the phase begins. It ends where the next one begins."""
    members: Indices
    """int64 [samples of the phase]: numbers of the samples."""
    where: str | None
    """The filter that the samples pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of a catalog in the order of its rows: all of them, those that pass a filter, or windows of those."""

    table: pa.Table
    """The catalog's table, not filtered."""
    rows: Indices
    """int64 [n]: each sample's row in ``table``."""
    start_frames: Indices | None
    """int64 [n]: first frame of each window in its clip. None if samples are whole clips."""
    keys: Keys
    """uint64 [n]: shuffle keys."""
    codes: BucketCodes
    """uint16 [n]: each sample's bucket in ``buckets``."""
    buckets: list[BucketShape]
    """The buckets that have samples, sorted by size."""
    digest: str
    """Identifies the set of samples; see ``digest_of``."""
    folder: Path | None
    """Folder of the catalog's cache."""
    where: str | None
    """The filter that the samples pass."""
    phases: tuple[Phase, ...] = ()
    """The samples of each epoch, where they are not the same in all: each sample is in one phase at least."""
    files: Any = field(default=None, repr=False, compare=False)
    """The files that other processes map; see ``workers/shared_samples.py``."""

    _views: dict[str, npt.NDArray[Any] | pa.Array] = field(default_factory=dict, repr=False)

    def take(self, samples: Indices, names: list[str]) -> dict[str, Any]:
        """Return some columns of some samples: numbers as arrays (null as NaN), everything else as lists."""
        rows = self.rows[samples]
        arrow_rows = pa.array(rows)
        views = {name: self._views[name] if name in self._views else self._view(name) for name in names}
        return {
            name: view[rows] if isinstance(view, np.ndarray) else view.take(arrow_rows).to_pylist()
            for name, view in views.items()
        }

    def _view(self, name: str) -> npt.NDArray[Any] | pa.Array:
        """Return a column that rows can be taken from quickly. A mapped column without nulls is not copied."""
        column = self.table[name]
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            self._views[name] = column.to_numpy()
        else:
            self._views[name] = column.chunk(0) if column.num_chunks == 1 else column
        return self._views[name]

    def in_group(self, group: str) -> Indices:
        """Return the numbers of the samples of a bucket group, int64 [samples of the group]."""
        is_in_group = pc.equal(self.table["group"], group).fill_null(False).to_numpy()
        return np.flatnonzero(is_in_group[self.rows])

    def phase_of(self, epoch: int) -> Phase | None:
        """Return the phase that an epoch is in; None if all epochs have all samples."""
        begun = [phase for phase in self.phases if phase.first_epoch <= epoch]
        return begun[-1] if begun else None

    def in_epoch(self, epoch: int) -> Indices | None:
        """Return the numbers of the samples of an epoch, int64 [samples of the epoch]; None for all."""
        phase = self.phase_of(epoch)
        return None if phase is None else phase.members

    @property
    def column_names(self) -> list[str]:
        """Names of the columns that ``columns`` returns."""
        names = [name for name in self.table.column_names if name not in (KEY, CODE)]
        return names if self.start_frames is None else [*names, "start_frame"]

    def columns(self, names: list[str] | None = None, samples: Indices | None = None) -> pa.Table:
        """Return some or all columns of some or all samples, one row per sample.

        Windows have their own times and sizes. This copies the table if there is a filter or there are windows.
        """
        names = self.column_names if names is None else names
        if samples is None and self.start_frames is None and len(self.rows) == self.table.num_rows:
            return self.table.select(names)
        chosen = slice(None) if samples is None else samples
        rows = pa.array(self.rows[chosen])
        if self.start_frames is None:
            return self.table.select(names).take(rows)
        stored = [name for name in names if name != "start_frame"]
        table = self.table.select(list(dict.fromkeys([*stored, *WINDOW_COLUMNS]))).take(rows)
        changed = self._window_columns(table, self.start_frames[chosen], self.codes[chosen])
        return pa.table({name: changed.get(name, table[name] if name in stored else None) for name in names})

    def _window_columns(self, table: pa.Table, starts: Indices, codes: BucketCodes) -> dict[str, pa.Array]:
        """Return the columns in which windows differ from their clips. table: the clips' ``WINDOW_COLUMNS``."""
        bucket = [self.buckets[code] for code in codes]
        frames = np.array([shape.num_frames for shape in bucket], dtype=np.int32)
        clip_s = table["end_s"].to_numpy() - table["start_s"].to_numpy()
        frame_s = clip_s / table["num_frames"].to_numpy()
        start_s = table["start_s"].to_numpy() + starts * frame_s
        return {
            "num_frames": pa.array(frames),
            "latent_t": pa.array(np.array([shape.latent_thw[0] for shape in bucket], dtype=np.int32)),
            "bucket": pa.array([str(shape) for shape in bucket], pa.string()),
            "start_s": pa.array(start_s),
            "end_s": pa.array(start_s + frames * frame_s),
            "start_frame": pa.array(starts),
        }


def select_samples(
    catalog: Catalog,
    card: Card,
    where: Where | Mapping[int, Where],
    frames: int | None,
    frames_stride: int | None,
) -> Samples:
    """Return the samples that pass a filter, whole or as windows of ``frames`` frames.

    where: one filter, or the filters by the epoch from which each holds. Samples that pass any of them are selected.
    Raises ConfigError if windows cannot be exact or no sample passes a later filter, and WhereError for wrong filters.
    """
    table, buckets = catalog.table, catalog.buckets
    by_epoch = _filters_by_epoch(where) if isinstance(where, Mapping) else {0: where}
    where = by_epoch if len(by_epoch) > 1 else by_epoch[0]
    rows_by_epoch = {epoch: _matching_rows(catalog, condition) for epoch, condition in by_epoch.items()}
    rows = functools.reduce(np.union1d, rows_by_epoch.values())
    keys: Keys = table[KEY].to_numpy()
    codes: BucketCodes = table[CODE].to_numpy()
    is_part = where is not None or catalog.kept is not None
    if is_part:
        keys, codes = keys[rows], codes[rows]
    starts = None
    if frames is not None:
        num_frames = np.array([bucket.num_frames for bucket in buckets], dtype=np.int64)
        chosen, starts = _windows(num_frames[codes], card, frames, frames_stride)
        rows, keys, codes = rows[chosen], keys[chosen], codes[chosen]
        keys = keys ^ (starts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        latent_t = card.geometry.latent_frames(frames)
        buckets = [
            dataclasses.replace(bucket, num_frames=frames, latent_thw=(latent_t, *bucket.latent_thw[1:]))
            for bucket in buckets
        ]
    phases = _phases(by_epoch, rows_by_epoch, rows) if len(by_epoch) > 1 else ()
    digest = catalog.digest
    if is_part or frames is not None:
        codes, buckets = _drop_empty_buckets(codes, buckets)
        digest = digest_of(keys)
    if phases:
        digest = digest_of_parts([(phase.first_epoch, keys[phase.members]) for phase in phases])
    return Samples(
        table=table,
        rows=rows,
        start_frames=starts,
        keys=keys,
        codes=codes,
        buckets=buckets,
        digest=digest,
        folder=catalog.folder,
        where=None if where is None else str(where),
        phases=phases,
    )


def latents_before(card: Card, frame: int) -> int:
    """Return the number of latent frames before ``frame``, the first frame of a chunk."""
    chunk = card.geometry.chunk_frames
    return frame // chunk * card.geometry.latents_per_chunk(frame) if chunk else 0


def _filters_by_epoch(where: Mapping[int, Where]) -> dict[int, Where]:
    """Return the filters in the order of their epochs. Raises ConfigError unless the first one is for epoch 0."""
    if not all(isinstance(epoch, int | np.integer) and epoch >= 0 for epoch in where) or 0 not in where:
        raise ConfigError(
            "where: filters by epoch need the epochs in which they begin, from 0, as in {0: 'score > 5', 3: 'score > 6'}; "
            f"got the epochs {', '.join(map(repr, where)) or 'none'}"
        )
    return {int(epoch): where[epoch] for epoch in sorted(where)}


def _phases(by_epoch: Mapping[int, Where], rows_by_epoch: Mapping[int, Indices], rows: Indices) -> tuple[Phase, ...]:
    """Return the samples of each epoch. rows: int64 [n], the row of each sample; windows of a clip share one."""
    phases = []
    for epoch, where in by_epoch.items():
        members = np.flatnonzero(np.isin(rows, rows_by_epoch[epoch]))
        if not len(members):
            raise ConfigError(f"where: no sample passes the filter that begins in epoch {epoch}")
        phases.append(Phase(first_epoch=epoch, members=members, where=None if where is None else str(where)))
    return tuple(phases)


def _matching_rows(catalog: Catalog, where: Where) -> Indices:
    """Return the rows that pass a filter and are not removed."""
    if where is None:
        return np.arange(catalog.table.num_rows) if catalog.kept is None else catalog.kept
    visible = catalog.table.drop_columns([KEY, CODE])
    rows = make_filter(where, visible.schema).matching_rows(visible)
    return rows if catalog.kept is None else np.intersect1d(rows, catalog.kept, assume_unique=True)


def _windows(num_frames: Indices, card: Card, frames: int, stride: int | None) -> tuple[Indices, Indices]:
    """Return the clip and the first frame of each window.

    Windows begin with a chunk of the VAE and consist of whole chunks, because only those equal what encoding their frames
    alone gives. The last chunk is shorter if the VAE's clips end with a shorter one.
    """
    chunk = card.geometry.chunk_frames
    if chunk is None:
        raise ConfigError(
            f"{card.class_name} encodes a clip as a whole, so windows of it cannot be exact; "
            f"leave out frames=, or select whole clips with where='num_frames == {frames}'"
        )
    stride = -(-frames // chunk) * chunk if stride is None else stride
    ends_early = card.geometry.frames.step > 1  # such as 17n+5: the last chunk of a clip has fewer frames
    if ends_early and not card.geometry.frames.fits(frames):
        nearest = card.geometry.frames.nearest(frames)
        raise ConfigError(f"frames must be {card.geometry.frames}, got {frames}; the nearest that fits is {nearest}")
    for name, value in (("frames", chunk if ends_early else frames), ("frames_stride", stride)):
        if value < 1 or value % chunk:
            raise ConfigError(f"{name} must be a multiple of the VAE's chunks of {chunk} frames, got {value}")
    # Shapes: num_frames and counts are int64 [clips]; clips and numbers are int64 [windows].
    # Invariant: the windows of one clip are neighbors, numbered from 0; clips keep their order.
    # Example: num_frames [102 17 51], frames 51 -> counts [2 0 1], clips [0 0 2], numbers [0 1 0], starts [0 51 0].
    counts = np.where(num_frames >= frames, (num_frames - frames) // stride + 1, 0)
    if not counts.any():
        raise ConfigError(f"no clip has {frames} frames; the longest has {num_frames.max(initial=0)}")
    clips = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(clips)) - np.repeat(np.cumsum(counts) - counts, counts)
    return clips, numbers * stride


def _drop_empty_buckets(codes: BucketCodes, buckets: list[BucketShape]) -> tuple[BucketCodes, list[BucketShape]]:
    """Return the buckets that have samples, each shape once and sorted by size, and the samples' new codes."""
    # Shapes: codes is uint16 [n]; new_codes is uint16 [old buckets].
    # Invariant: shapes[new_codes[c]] == buckets[c] for every code c that occurs.
    # Example: codes [2 0 2], buckets [B A A], sorted A < B -> shapes [A B], new_codes [1 0 0], result [0 1 0].
    present = np.flatnonzero(np.bincount(codes, minlength=len(buckets)))
    shapes = sorted({buckets[code] for code in present}, key=lambda s: (s.height, s.width, s.num_frames))
    new_codes = np.zeros(len(buckets), dtype=np.uint16)
    new_codes[present] = [shapes.index(buckets[code]) for code in present]
    return new_codes[codes], shapes

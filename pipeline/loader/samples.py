"""The samples that training sees: those of a catalog that pass a filter, whole or cut into windows. No latent is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.loader.catalog import CODE, KEY, BucketShape, Catalog
from pipeline.loader.filters import columns_of, parse_where
from pipeline.loader.schedule.keys import BucketCodes, Indices, Keys, digest_of
from stvae.card import Card


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of a table in its order: all of them, or those that a filter left, or windows of them."""

    table: pa.Table
    """Of the catalog."""
    rows: Indices
    """Row of each sample in ``table``."""
    start_frames: Indices | None
    """First frame of each sample in its clip, where clips are cut into windows."""
    keys: Keys
    codes: BucketCodes
    """Each sample's bucket."""
    buckets: list[BucketShape]
    """Those that have samples, in the order of their sizes."""
    digest: str
    """Names the set of samples; see ``digest_of``."""
    folder: Path | None
    """Folder of the catalog's cache."""
    where: str | None
    """The filter that these samples passed."""

    _views: dict[str, npt.NDArray[Any] | pa.Array] = field(default_factory=dict, repr=False)

    def take(self, samples: Indices, names: list[str]) -> dict[str, Any]:
        """Some columns of some samples: numbers as arrays (null as NaN), everything else as lists."""
        rows = self.rows[samples]
        at = pa.array(rows)
        views = {name: self._views[name] if name in self._views else self._view(name) for name in names}
        return {
            name: view[rows] if isinstance(view, np.ndarray) else view.take(at).to_pylist()
            for name, view in views.items()
        }

    def _view(self, name: str) -> npt.NDArray[Any] | pa.Array:
        """A column to take rows of; of mapped columns without nulls this is no copy."""
        column = self.table[name]
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            self._views[name] = column.to_numpy()
        else:
            self._views[name] = column.chunk(0) if column.num_chunks == 1 else column
        return self._views[name]

    def columns(self) -> pa.Table:
        """All that is known of each sample. A copy where there is a filter or windows."""
        table = self.table.drop_columns([KEY, CODE])
        if len(self.rows) != table.num_rows or self.start_frames is not None:
            table = table.take(pa.array(self.rows))
        if self.start_frames is None:
            return table
        starts, bucket = self.start_frames, [self.buckets[code] for code in self.codes]
        frames = np.array([shape.num_frames for shape in bucket], dtype=np.int32)
        clip_s = table["end_s"].to_numpy() - table["start_s"].to_numpy()
        frame_s = clip_s / table["num_frames"].to_numpy()
        start_s = table["start_s"].to_numpy() + starts * frame_s
        changed = {
            "num_frames": pa.array(frames),
            "latent_t": pa.array(np.array([shape.latent_thw[0] for shape in bucket], dtype=np.int32)),
            "bucket": pa.array([str(shape) for shape in bucket], pa.string()),
            "start_s": pa.array(start_s),
            "end_s": pa.array(start_s + frames * frame_s),
        }
        for name, values in changed.items():
            table = table.set_column(table.column_names.index(name), name, values)
        return table.append_column("start_frame", pa.array(starts))


def select_samples(
    catalog: Catalog, card: Card, where: str | None, frames: int | None, frames_stride: int | None
) -> Samples:
    """The samples that pass a filter, whole or as windows of ``frames`` frames.

    ConfigError where windows cannot be exact; WhereError where the filter is wrong.
    """
    table, buckets = catalog.table, catalog.buckets
    rows = np.arange(table.num_rows) if where is None else _passing(table, where)
    keys: Keys = table[KEY].to_numpy()
    codes: BucketCodes = table[CODE].to_numpy()
    if where is not None:
        keys, codes = keys[rows], codes[rows]
    starts = None
    if frames is not None:
        num_frames = np.array([bucket.num_frames for bucket in buckets], dtype=np.int64)
        chosen, starts = _windows(num_frames[codes], card, frames, frames_stride)
        rows, keys, codes = rows[chosen], keys[chosen], codes[chosen]
        keys = keys ^ (starts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        latent_t = latents_before(card, frames)
        buckets = [
            dataclasses.replace(bucket, num_frames=frames, latent_thw=(latent_t, *bucket.latent_thw[1:]))
            for bucket in buckets
        ]
    digest = catalog.digest
    if where is not None or frames is not None:
        codes, buckets = _used(codes, buckets)
        digest = digest_of(keys)
    return Samples(
        table=table,
        rows=rows,
        start_frames=starts,
        keys=keys,
        codes=codes,
        buckets=buckets,
        digest=digest,
        folder=catalog.folder,
        where=where,
    )


def latents_before(card: Card, frame: int) -> int:
    """Latent frames in front of a frame at which a chunk begins."""
    chunk = card.geometry.chunk_frames
    return frame // chunk * card.geometry.latents_per_chunk(frame) if chunk else 0


def _passing(table: pa.Table, where: str) -> Indices:
    """Rows that pass the filter; only the columns that it names are looked at."""
    visible = table.drop_columns([KEY, CODE])
    expression = parse_where(where, visible.schema)
    named = visible.select(columns_of(where, visible.schema))
    rows: Indices = named.append_column(KEY, pa.array(np.arange(len(table)))).filter(expression)[KEY].to_numpy()
    return rows


def _windows(num_frames: Indices, card: Card, frames: int, stride: int | None) -> tuple[Indices, Indices]:
    """For each window its clip and its first frame. Only windows of whole chunks equal what was encoded alone."""
    chunk = card.geometry.chunk_frames
    if chunk is None:
        raise ConfigError(
            f"{card.class_name} encodes a clip as a whole, so no part of it can be cut out exactly; "
            f"choose whole clips with where='num_frames == {frames}'"
        )
    stride = frames if stride is None else stride
    for name, value in (("frames", frames), ("frames_stride", stride)):
        if value < 1 or value % chunk:
            raise ConfigError(f"{name} must be a multiple of the VAE's chunks of {chunk} frames, got {value}")
    counts = np.where(num_frames >= frames, (num_frames - frames) // stride + 1, 0)
    if not counts.any():
        raise ConfigError(f"no clip has {frames} frames; the longest has {num_frames.max(initial=0)}")
    chosen = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
    return chosen, number * stride


def _used(codes: BucketCodes, buckets: list[BucketShape]) -> tuple[BucketCodes, list[BucketShape]]:
    """Buckets that have samples, each shape once, and the codes that go with them."""
    present = np.flatnonzero(np.bincount(codes, minlength=len(buckets)))
    shapes = sorted({buckets[code] for code in present}, key=lambda s: (s.height, s.width, s.num_frames))
    place = np.zeros(len(buckets), dtype=np.uint16)
    place[present] = [shapes.index(buckets[code]) for code in present]
    return place[codes], shapes

"""The samples of an output as a table: opened through a mapped cache, joined, filtered and cut into windows.

No latent is read here. The cache is an Arrow file that the processes of a node map: opening it takes milliseconds and no
memory of their own, whatever its size.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.epochs import Indices, Keys
from pipeline.errors import ConfigError
from pipeline.index import newest_index
from pipeline.store import Store
from pipeline.tables import read_parquet
from pipeline.where import columns_of, parse_where
from stvae.card import Card

CACHE_VERSION = 1
KEY = "_key"
"""Column of the cache: the first 64 bits of ``id``, by which samples are shuffled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketShape:
    """What all samples of a bucket share."""

    num_frames: int
    height: int
    width: int
    latent_thw: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of a table in its order: all of them, or those that a filter left, or windows of them."""

    table: pa.Table
    """Every sample of the output; one chunk per column where it fits, so that taking rows costs microseconds."""
    rows: Indices
    """Row of each sample in ``table``."""
    start_frames: Indices | None
    """First frame of each sample in its clip, where clips are cut into windows."""
    keys: Keys
    codes: npt.NDArray[np.uint16]
    """Each sample's bucket."""
    buckets: list[BucketShape]

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
        table = self.table.drop_columns([KEY])
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
    table: pa.Table, card: Card, where: str | None, frames: int | None, frames_stride: int | None
) -> Samples:
    """The samples that pass a filter, whole or as windows of ``frames`` frames.

    ConfigError where windows cannot be exact; WhereError where the filter is wrong.
    """
    rows = np.arange(table.num_rows) if where is None else _passing(table, where)
    numbers = {
        name: table[name].to_numpy()[rows]
        for name in ("height", "width", "num_frames", "latent_t", "latent_h", "latent_w", KEY)
    }
    starts = None
    if frames is not None:
        chosen, starts = _windows(numbers["num_frames"], card, frames, frames_stride)
        rows, numbers = rows[chosen], {name: values[chosen] for name, values in numbers.items()}
        numbers["latent_t"] = np.full(len(rows), latents_before(card, frames))
        numbers["num_frames"] = np.full(len(rows), frames)
        numbers[KEY] = numbers[KEY] ^ (starts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    codes, buckets = _buckets(numbers)
    return Samples(table=table, rows=rows, start_frames=starts, keys=numbers[KEY], codes=codes, buckets=buckets)


def latents_before(card: Card, frame: int) -> int:
    """Latent frames in front of a frame at which a chunk begins."""
    chunk = card.geometry.chunk_frames
    return frame // chunk * card.geometry.latents_per_chunk(frame) if chunk else 0


def open_samples(store: Store, cache: Path | None) -> pa.Table:
    """Sample rows from the newest index, or from the sidecars where there is no index yet, with their ``KEY``.

    With ``cache`` the index is written there once as an Arrow file, by whichever process comes first.
    """
    index = newest_index(store)
    if index is None:
        paths = sorted(path for path in store.list_files("metadata") if path.endswith(".parquet"))
        if not paths:
            raise ConfigError(f"{store.url} has no committed samples")
        return _read(store, paths)
    if cache is None or not index.samples:
        return _read(store, index.samples or [*index.rejects, *index.skips])
    # the parts' folder is named by the hash of their content
    name = hashlib.sha256(f"{CACHE_VERSION} {store.url} {index.samples}".encode()).hexdigest()[:32]
    path = cache / f"{name}.arrow"
    cache.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _write_cache(path, _read(store, index.samples))
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def join(table: pa.Table, extra: pa.Table, name: str) -> pa.Table:
    """``table`` with the other columns of ``extra``, matched by ``id``; null where ``extra`` lacks an id.

    ConfigError if an id stands twice in ``extra``, or a column is there already.
    """
    if "id" not in extra.column_names:
        raise ConfigError(f"{name} has no column 'id' to join by; it has {', '.join(extra.column_names)}")
    taken = [column for column in extra.column_names if column != "id" and column in table.column_names]
    if taken:
        raise ConfigError(f"{name} has columns that are there already: {', '.join(taken)}; rename them")
    ids = extra["id"].cast(pa.large_string()).combine_chunks()
    if pc.count_distinct(ids).as_py() != len(ids):
        raise ConfigError(f"{name} has some ids more than once; keep one row for each")
    at = pc.index_in(table["id"].cast(pa.large_string()), value_set=ids)
    matched = extra.drop_columns(["id"]).combine_chunks().take(at)
    for column in matched.column_names:
        table = table.append_column(column, _one_chunk(matched[column]))
    return table


def read_table(url: str) -> pa.Table:
    """A Parquet file anywhere that the output could be."""
    folder, _, name = url.rpartition("/")
    try:
        return read_parquet(Store(folder or ".").get(name))
    except (FileNotFoundError, pa.ArrowException) as error:
        raise ConfigError(f"'{url}' cannot be joined: it is no Parquet file ({error})") from error


def _read(store: Store, paths: list[str]) -> pa.Table:
    tables = [read_parquet(store.get(path)).replace_schema_metadata(None) for path in paths]
    table = pa.concat_tables(tables, promote_options="default")
    table = table.filter(pc.field("shard").is_valid())
    table = pa.table([_one_chunk(column) for column in table.columns], schema=table.schema)
    return table.append_column(KEY, pa.array(_keys(table["id"])))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    merged = column.combine_chunks()
    return merged.chunk(0) if isinstance(merged, pa.ChunkedArray) and merged.num_chunks == 1 else merged


def _keys(ids: pa.ChunkedArray) -> Keys:
    """The first 16 hex digits of every id as a number."""
    if not len(ids):
        return np.zeros(0, dtype=np.uint64)
    text = pc.utf8_slice_codeunits(ids.cast(pa.large_string()), 0, 16).combine_chunks()
    digits = np.frombuffer(text.buffers()[2], np.uint8, 16 * len(ids)).reshape(-1, 16)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    packed = values[:, 0::2] << 4 | values[:, 1::2]
    keys: Keys = packed.astype(np.uint8).view(">u8").reshape(-1).astype(np.uint64)
    return keys


def _write_cache(path: Path, table: pa.Table) -> None:
    # 64-bit offsets: ten million captions do not fit in one chunk of the 32-bit kind
    large = pa.schema([field.with_type(_large(field.type)) for field in table.schema])
    partial = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, large) as writer:
            for batch in table.cast(large).combine_chunks().to_batches():
                writer.write_batch(batch)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _large(type_: pa.DataType) -> pa.DataType:
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(type_, type_)


def _passing(table: pa.Table, where: str) -> Indices:
    """Rows that pass the filter; only the columns that it names are looked at."""
    visible = table.drop_columns([KEY])
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
            raise ConfigError(f"{name} must be a multiple of the codec's chunks of {chunk} frames, got {value}")
    counts = np.where(num_frames >= frames, (num_frames - frames) // stride + 1, 0)
    if not counts.any():
        raise ConfigError(f"no clip has {frames} frames; the longest has {num_frames.max(initial=0)}")
    chosen = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
    return chosen, number * stride


def _buckets(numbers: dict[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[np.uint16], list[BucketShape]]:
    """Each sample's bucket, and the buckets in the order of their sizes."""
    names = ("height", "width", "num_frames")
    packed = np.zeros(len(numbers["height"]), dtype=np.int64)
    for name in names:
        packed = packed << 20 | numbers[name]
    encoded = pc.dictionary_encode(pa.array(packed))
    values, codes = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    first = np.full(len(values), len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    order = np.argsort(values)
    place = np.empty(len(order), dtype=np.uint16)
    place[order] = np.arange(len(order), dtype=np.uint16)
    shapes = [
        BucketShape(
            **{name: int(numbers[name][row]) for name in names},
            latent_thw=(int(numbers["latent_t"][row]), int(numbers["latent_h"][row]), int(numbers["latent_w"][row])),
        )
        for row in first[order].tolist()
    ]
    return place[codes], shapes

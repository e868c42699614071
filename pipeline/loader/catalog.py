"""All samples of an output as one table, read from its index or mapped from a cache on local disk.

The cache has one Arrow file per column, which the processes of a node map. Opening it takes milliseconds and no memory of
their own, whatever its size. It is written column by column, so that only one column is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, Purged
from pipeline.loader.schedule.keys import BucketCodes, Indices, Keys, digest_of
from pipeline.loader.workers.column_files import large_type, map_columns, one_chunk, write_columns
from pipeline.output.edits.edits import Edits
from pipeline.output.edits.version import OutputVersion, edits_of, read_tag
from pipeline.output.index import read_index
from pipeline.output.purges.record import newest_purge
from pipeline.storage.concurrency import LARGE_REQUESTS, map_concurrently
from pipeline.storage.local.cache import make_once, warn_of_cache
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from pipeline.storage.urls import check_inside

CACHE_VERSION = 2
KEY = "_key"
"""Column of shuffle keys: the first 64 bits of ``id``."""
CODE = "_code"
"""Column of bucket numbers."""
SIZES = ("height", "width", "num_frames", "latent_t", "latent_h", "latent_w")


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketShape:
    """The size that all samples of a bucket share, in pixels and in latent cells."""

    height: int
    width: int
    num_frames: int
    latent_thw: tuple[int, int, int]

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> BucketShape:
        """Build it from the values of its fields, as JSON has them."""
        return cls(**values | {"latent_thw": tuple(values["latent_thw"])})

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All samples of an output."""

    table: pa.Table
    """One row per sample, with ``KEY`` and ``CODE``. Columns have one chunk where possible, which makes taking rows fast."""
    buckets: list[BucketShape]
    """The buckets that ``CODE`` numbers, sorted by size."""
    digest: str
    """Identifies the set of samples; see ``digest_of``."""
    folder: Path | None = None
    """Folder of the cache."""
    kept: Indices | None = None
    """int64 [n]: rows of the samples that are not removed; None for all rows."""

    def join(self, extra: pa.Table, name: str) -> Catalog:
        """Return this catalog with the columns of ``extra`` added by ``id``; null where ``extra`` has no such id.

        name: what messages call ``extra``. Raises ConfigError if it has an id twice or a column that is there already.
        """
        if "id" not in extra.column_names:
            raise ConfigError(f"{name} has no column 'id' to join by; its columns are {', '.join(extra.column_names)}")
        taken = [column for column in extra.column_names if column != "id" and column in self.table.column_names]
        if taken:
            raise ConfigError(f"{name} has columns that are there already: {', '.join(taken)}; rename them")
        ids = extra["id"].cast(pa.large_string()).combine_chunks()
        if pc.count_distinct(ids).as_py() != len(ids):
            raise ConfigError(f"{name} has some ids more than once; keep one row for each id")
        rows = pc.index_in(self.table["id"].cast(pa.large_string()), value_set=ids)
        matched = extra.drop_columns(["id"]).combine_chunks().take(rows)
        table = self.table
        for column in matched.column_names:
            table = table.append_column(column, one_chunk(matched[column]))
        return dataclasses.replace(self, table=table)


def open_catalog(store: Store, version: OutputVersion, cache: Path | None) -> Catalog:
    """Open the samples of a version. With ``cache``, the first process writes its index there, and all processes map it.

    The table has removed samples too, because a mapped one is not copied; ``Catalog.kept`` leaves them out.
    """
    try:
        catalog = _apply_edits(_open(store, version, cache), edits_of(store, version))
    except FileNotFoundError as error:
        raise _purged_while_opened(store, version) or error from error
    _warn_of_lost_samples(store, version, len(catalog.table if catalog.kept is None else catalog.kept))
    if "group" in catalog.table.column_names:
        return catalog
    table = catalog.table.append_column("group", pa.nulls(len(catalog.table), pa.string()))  # of an earlier program
    return dataclasses.replace(catalog, table=table)


def _purged_while_opened(store: Store, version: OutputVersion) -> Exception | None:
    """The error for files that a purge has deleted since the version was found; None if nothing was purged."""
    if version.index is not None:
        read_index(store, version.index)
    purge = newest_purge(store)
    return (
        None if purge is None else Purged(f"{store.url} was changed by {purge.name} while it was opened: open it again")
    )


def _warn_of_lost_samples(store: Store, version: OutputVersion, samples: int) -> None:
    """Warn if a tag has fewer samples than when it was made."""
    tag = None if version.tag is None else read_tag(store, version.tag)
    if tag is not None and samples < tag.samples:
        purge = newest_purge(store)
        warnings.warn(
            f"{tag.samples - samples} of the {tag.samples} samples of the tag '{version.tag}' are missing: they were purged"
            f"{'' if purge is None else f', last by {purge.name}'}",
            stacklevel=4,
        )


def _apply_edits(catalog: Catalog, edits: Edits) -> Catalog:
    if not len(edits.rows):
        return catalog
    removed = edits.is_removed(catalog.table).to_numpy(zero_copy_only=False)
    kept: Indices = np.flatnonzero(~removed)
    keys: Keys = catalog.table[KEY].to_numpy()
    return dataclasses.replace(catalog, kept=kept, digest=digest_of(keys[kept])) if removed.any() else catalog


def _open(store: Store, version: OutputVersion, cache: Path | None) -> Catalog:
    if version.index is None:
        return _in_memory(store, version.unit_metadata)
    index = read_index(store, version.index)
    if cache is None or not index.samples:
        return _in_memory(store, index.samples or [*index.rejects, *index.skips])
    # the names of index parts contain the hash of their content, so an entry never becomes stale
    name = hashlib.sha256(f"{CACHE_VERSION} {store.url} {index.samples}".encode()).hexdigest()[:32]
    folder = cache / name
    try:
        make_once(folder, lambda partial: _write(partial, store, index.samples))
        return _mapped(folder)
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        warn_of_cache(cache, error, "this process holds the whole index in memory")
        return _in_memory(store, index.samples)


def _in_memory(store: Store, paths: list[str]) -> Catalog:
    contents = map_concurrently(store.get, paths, LARGE_REQUESTS)
    tables = [read_parquet(content).replace_schema_metadata(None) for content in contents]
    table = pa.concat_tables(tables, promote_options="default")
    table = table.filter(pc.field("shard").is_valid())
    _check_shards(table["shard"], store)
    table = pa.table([one_chunk(column) for column in table.columns], schema=table.schema)
    keys = _shuffle_keys(table["id"])
    codes, buckets = _number_buckets([table[name].to_numpy() for name in SIZES])
    table = table.append_column(KEY, pa.array(keys)).append_column(CODE, pa.array(codes))
    return Catalog(table=table, buckets=buckets, digest=digest_of(keys))


def _mapped(folder: Path) -> Catalog:
    facts = json.loads((folder / "catalog.json").read_text())
    buckets = [BucketShape.from_plain(shape) for shape in facts["buckets"]]
    return Catalog(table=pa.table(map_columns(folder)), buckets=buckets, digest=facts["digest"], folder=folder)


def _write(folder: Path, store: Store, parts: list[str]) -> None:
    """Write the cache's folder: an Arrow file per column, and ``catalog.json``."""
    part_folder = folder / "parts"
    part_folder.mkdir(parents=True)
    for n, content in enumerate(map_concurrently(store.get, parts, LARGE_REQUESTS)):
        (part_folder / f"{n:06d}.parquet").write_bytes(content)
    files = [
        pq.ParquetFile(str(path), memory_map=True, page_checksum_verification=True)
        for path in sorted(part_folder.iterdir())
    ]
    write_columns(folder, _columns(files, folder / "catalog.json", store))
    shutil.rmtree(part_folder)


def _check_shards(column: pa.Array | pa.ChunkedArray, store: Store) -> None:
    """Raise IntegrityError if the path of a shard leads out of the output."""
    for shard in pc.unique(column).to_pylist():
        check_inside(shard, store.url)


def _columns(files: list[pq.ParquetFile], facts_path: Path, store: Store) -> Iterator[tuple[str, pa.Array]]:
    """Yield the columns of the catalog one by one, then write the digest and the buckets to ``facts_path``."""
    sizes: dict[str, npt.NDArray[np.int32]] = {}
    digest = ""
    for name in files[0].schema_arrow.names:
        column = pa.chunked_array([chunk for file in files for chunk in file.read([name]).column(0).chunks])
        array = column.cast(large_type(column.type)).combine_chunks()
        if name in SIZES:
            sizes[name] = array.to_numpy()
        if name == "shard":
            _check_shards(array, store)
        yield name, array
        if name == "id":
            keys = _shuffle_keys(array)
            digest = digest_of(keys)
            yield KEY, pa.array(keys)
    codes, buckets = _number_buckets([sizes[name] for name in SIZES])
    yield CODE, pa.array(codes)
    facts_path.write_text(json.dumps({"digest": digest, "buckets": [dataclasses.asdict(shape) for shape in buckets]}))


def _shuffle_keys(ids: pa.Array | pa.ChunkedArray) -> Keys:
    """Return the first 16 hex digits of every id as a number, uint64 [n]."""
    if not len(ids):
        return np.zeros(0, dtype=np.uint64)
    text = pc.utf8_slice_codeunits(ids.cast(pa.large_string()), 0, 16)
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    # Shapes: digits is uint8 [n, 16] of ASCII codes; values is uint8 [n, 16] of 0 to 15; pairs is uint8 [n, 8].
    # Invariant: the first digit is the highest, so the 8 bytes of a row are one big-endian number.
    # Example: id "00000000000000ff..." -> values [0 .. 0 15 15], pairs [0 .. 0 255], key 255.
    digits = np.frombuffer(text.buffers()[2], np.uint8, 16 * len(ids)).reshape(-1, 16)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    pairs = values[:, 0::2] << 4 | values[:, 1::2]
    keys: Keys = pairs.astype(np.uint8).view(">u8").reshape(-1).astype(np.uint64)
    return keys


def _number_buckets(columns: list[npt.NDArray[np.int32]]) -> tuple[BucketCodes, list[BucketShape]]:
    """Return each sample's bucket number, and the buckets sorted by height, width and frames.

    columns: the columns ``SIZES``, each int32 [n].
    """
    # Shapes: size_keys is int64 [n]; values and codes are its distinct values [buckets] and each row's place in them [n].
    # Invariant: size_keys sort as (height, width, num_frames) do, each below 2**20; shapes[numbers[codes[i]]] is row i's.
    # Example: rows of buckets B A B, with A < B -> codes [0 1 0], first_row [0 1], order [1 0], numbers [1 0].
    size_keys = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns[:3]:
        size_keys = size_keys << 20 | column
    encoded = pc.dictionary_encode(pa.array(size_keys))
    values, codes = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    first_row = np.empty(len(values), dtype=np.int64)
    first_row[codes[::-1]] = np.arange(len(codes))[::-1]
    order = np.argsort(values)
    numbers = np.empty(len(order), dtype=np.uint16)
    numbers[order] = np.arange(len(order), dtype=np.uint16)
    shapes = []
    for row in first_row[order].tolist():
        height, width, num_frames, t, h, w = (int(column[row]) for column in columns)
        shapes.append(BucketShape(height=height, width=width, num_frames=num_frames, latent_thw=(t, h, w)))
    return numbers[codes], shapes

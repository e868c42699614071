"""Every sample of an output as one table, opened from its index or through a cache of mapped files.

The cache holds an Arrow file per column, which the processes of a node map: opening it takes milliseconds and no memory of
their own, whatever its size. It is written column by column, so no more than one is in memory.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.loader.epochs import Keys, digest_of
from pipeline.output.index import newest_index
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store

CACHE_VERSION = 2
KEY = "_key"
"""Column of the catalog: the first 64 bits of ``id``, by which samples are shuffled."""
CODE = "_code"
"""Column of the catalog: the number of the sample's bucket."""
SIZES = ("height", "width", "num_frames", "latent_t", "latent_h", "latent_w")


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketShape:
    """What all samples of a bucket share."""

    height: int
    width: int
    num_frames: int
    latent_thw: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All samples of an output."""

    table: pa.Table
    """Their rows, with ``KEY`` and ``CODE``; one chunk per column where it fits, so that taking rows costs microseconds."""
    buckets: list[BucketShape]
    digest: str
    """Names the set of samples; see ``digest_of``."""
    folder: Path | None = None
    """Of the cache."""

    def join(self, extra: pa.Table, name: str) -> Catalog:
        """This catalog with the other columns of ``extra``, matched by ``id``; null where ``extra`` lacks an id.

        ConfigError if an id stands twice in ``extra``, or a column is there already.
        """
        if "id" not in extra.column_names:
            raise ConfigError(f"{name} has no column 'id' to join by; it has {', '.join(extra.column_names)}")
        taken = [column for column in extra.column_names if column != "id" and column in self.table.column_names]
        if taken:
            raise ConfigError(f"{name} has columns that are there already: {', '.join(taken)}; rename them")
        ids = extra["id"].cast(pa.large_string()).combine_chunks()
        if pc.count_distinct(ids).as_py() != len(ids):
            raise ConfigError(f"{name} has some ids more than once; keep one row for each")
        at = pc.index_in(self.table["id"].cast(pa.large_string()), value_set=ids)
        matched = extra.drop_columns(["id"]).combine_chunks().take(at)
        table = self.table
        for column in matched.column_names:
            table = table.append_column(column, _one_chunk(matched[column]))
        return dataclasses.replace(self, table=table)


def open_catalog(store: Store, cache: Path | None) -> Catalog:
    """Samples of the newest index, or of the metadata of the units where there is no index yet.

    With ``cache`` the index is written there once, by whichever process comes first.
    """
    index = newest_index(store)
    if index is None:
        paths = list(newest_unit_metadata(store).values())
        if not paths:
            raise ConfigError(f"{store.url} has no committed samples")
        return _in_memory(store, paths)
    if cache is None or not index.samples:
        return _in_memory(store, index.samples or [*index.rejects, *index.skips])
    # the parts' folder is named by the hash of their content
    name = hashlib.sha256(f"{CACHE_VERSION} {store.url} {index.samples}".encode()).hexdigest()[:32]
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _write(folder, store, index.samples)
    return _mapped(folder)


def read_table(url: str) -> pa.Table:
    """A Parquet file anywhere that the output could be."""
    folder, _, name = url.rpartition("/")
    try:
        return read_parquet(Store(folder or ".").get(name))
    except (FileNotFoundError, pa.ArrowException) as error:
        raise ConfigError(f"'{url}' cannot be joined: it is no Parquet file ({error})") from error


def _in_memory(store: Store, paths: list[str]) -> Catalog:
    tables = [read_parquet(store.get(path)).replace_schema_metadata(None) for path in paths]
    table = pa.concat_tables(tables, promote_options="default")
    table = table.filter(pc.field("shard").is_valid())
    table = pa.table([_one_chunk(column) for column in table.columns], schema=table.schema)
    keys = _keys(table["id"])
    codes, buckets = _buckets([table[name].to_numpy() for name in SIZES])
    table = table.append_column(KEY, pa.array(keys)).append_column(CODE, pa.array(codes))
    return Catalog(table=table, buckets=buckets, digest=digest_of(keys))


def _mapped(folder: Path) -> Catalog:
    facts = json.loads((folder / "catalog.json").read_text())
    columns = {}
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        columns[table.column_names[0]] = table.column(0)
    buckets = [BucketShape(**shape | {"latent_thw": tuple(shape["latent_thw"])}) for shape in facts["buckets"]]
    return Catalog(table=pa.table(columns), buckets=buckets, digest=facts["digest"], folder=folder)


def _write(folder: Path, store: Store, parts: list[str]) -> None:
    """The cache's folder: whole, or not at all."""
    partial = folder.with_suffix(f".{secrets.token_hex(4)}")
    (partial / "parts").mkdir(parents=True)
    try:
        for n, part in enumerate(parts):
            (partial / "parts" / f"{n:05d}.parquet").write_bytes(store.get(part))
        files = [
            pq.ParquetFile(str(path), memory_map=True, page_checksum_verification=True)
            for path in sorted((partial / "parts").iterdir())
        ]
        for n, (name, column) in enumerate(_columns(files, partial / "catalog.json")):
            with (
                pa.OSFile(str(partial / f"{n:05d}.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, pa.schema([(name, column.type)])) as writer,
            ):
                writer.write_batch(pa.record_batch([column], [name]))
        shutil.rmtree(partial / "parts")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _columns(files: list[pq.ParquetFile], facts_path: Path) -> Iterator[tuple[str, pa.Array]]:
    """Every column of the catalog in turn; what else it holds goes to ``facts_path``."""
    sizes: dict[str, npt.NDArray[np.int32]] = {}
    digest = ""
    for name in files[0].schema_arrow.names:
        column = pa.chunked_array([chunk for file in files for chunk in file.read([name]).column(0).chunks])
        # 64-bit offsets: ten million captions do not fit in one chunk of the 32-bit kind
        array = column.cast(_large(column.type)).combine_chunks()
        if name in SIZES:
            sizes[name] = array.to_numpy()
        yield name, array
        if name == "id":
            keys = _keys(array)
            digest = digest_of(keys)
            yield KEY, pa.array(keys)
    codes, buckets = _buckets([sizes[name] for name in SIZES])
    yield CODE, pa.array(codes)
    facts_path.write_text(json.dumps({"digest": digest, "buckets": [dataclasses.asdict(shape) for shape in buckets]}))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    merged = column.combine_chunks()
    return merged.chunk(0) if isinstance(merged, pa.ChunkedArray) and merged.num_chunks == 1 else merged


def _large(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type_):
        return pa.large_list(_large(type_.value_type))
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(type_, type_)


def _keys(ids: pa.Array | pa.ChunkedArray) -> Keys:
    """The first 16 hex digits of every id as a number."""
    if not len(ids):
        return np.zeros(0, dtype=np.uint64)
    text = pc.utf8_slice_codeunits(ids.cast(pa.large_string()), 0, 16)
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    digits = np.frombuffer(text.buffers()[2], np.uint8, 16 * len(ids)).reshape(-1, 16)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    packed = values[:, 0::2] << 4 | values[:, 1::2]
    keys: Keys = packed.astype(np.uint8).view(">u8").reshape(-1).astype(np.uint64)
    return keys


def _buckets(columns: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.uint16], list[BucketShape]]:
    """Each sample's bucket, and the buckets in the order of their sizes; from the columns ``SIZES``."""
    packed = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns[:3]:
        packed = packed << 20 | column
    encoded = pc.dictionary_encode(pa.array(packed))
    values, codes = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    first = np.empty(len(values), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    order = np.argsort(values)
    place = np.empty(len(order), dtype=np.uint16)
    place[order] = np.arange(len(order), dtype=np.uint16)
    shapes = []
    for row in first[order].tolist():
        height, width, num_frames, t, h, w = (int(column[row]) for column in columns)
        shapes.append(BucketShape(height=height, width=width, num_frames=num_frames, latent_thw=(t, h, w)))
    return place[codes], shapes

"""Opens a text layer: reads its card, its index and its map, and joins the map to the samples of the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, IntegrityError, Purged
from pipeline.loader.text.layer import NO_ROW, ArrayPlaces, CaptionForms, TextLayer
from pipeline.loader.text.shared_layer import LayerFiles
from pipeline.output.edits.version import OutputVersion, find_newest_version
from pipeline.output.index import read_index
from pipeline.output.layers.known_layers import FOLDER, layer_store
from pipeline.output.layers.text_card import TextArray
from pipeline.output.layers.text_layer import read_map_part, read_text_layer, read_text_map
from pipeline.output.layout.own_files import PLAN
from pipeline.output.purges.record import newest_purge
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store
from pipeline.storage.urls import check_inside


def open_layer(store: Store, name: str, ids: pa.ChunkedArray) -> TextLayer:
    """Open the layer of an output. ids: the ids of all samples of the output, in the order of its index.

    ConfigError if there is no such layer, or if it has no embeddings yet.
    """
    layer = layer_store(store, name)
    try:
        dataset = read_text_layer(layer)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.url} has no text layer '{name}': make one with jobs/encode_text.py --layer {name}, or give the name of "
            "another"
        ) from None
    try:
        version = find_newest_version(layer)
        rows, text_map = _read_rows(layer, version), _read_map(layer, version)
    except FileNotFoundError as error:
        purge = newest_purge(store)
        if purge is None:
            raise
        raise Purged(f"{layer.url} was changed by {purge.name} while it was opened: open it again") from error
    text_ids = rows["text_id"].combine_chunks()
    return TextLayer(
        name=name,
        card=dataset.card,
        dtype=dataset.recipe.dtype,
        captions=_read_captions(text_map, ids, text_ids),
        empty_row=_row_of(dataset.empty_id, text_ids, layer),
        null_row=NO_ROW if dataset.null_id is None else _row_of(dataset.null_id, text_ids, layer),
        places={array.name: _places(rows, array) for array in dataset.card.arrays},
        files=LayerFiles(store.url),
        **_shards(rows, name),
    )


def _read_rows(store: Store, version: OutputVersion) -> pa.Table:
    """Read the rows of all committed strings. Rejects have no shard, and are left out."""
    paths = version.unit_metadata if version.index is None else read_index(store, version.index).samples
    tables = [read_parquet(store.get(path)).replace_schema_metadata(None) for path in paths]
    if not tables:
        raise ConfigError(f"{store.url} has no committed embeddings; run jobs/encode_text.py again")
    table = pa.concat_tables(tables, promote_options="default")
    return table.filter(pc.field("shard").is_valid())


def _read_map(store: Store, version: OutputVersion) -> pa.Table:
    """Read the map of the newest generation of the plan that the version covers; of the newest one without an index."""
    if version.index is not None:
        generations = read_index(store, version.index).plan_generations
    else:
        generations = sum(PLAN.fullmatch(path) is not None for path in store.list_files("plan"))
    paths = read_text_map(store, generations - 1).paths
    return pa.concat_tables([read_map_part(store, path) for path in paths])


def _shards(rows: pa.Table, name: str) -> dict[str, Any]:
    encoded = rows["shard"].combine_chunks().dictionary_encode()
    shards = [f"{FOLDER}/{name}/{shard}" for shard in encoded.dictionary.to_pylist()]
    for shard in encoded.dictionary.to_pylist():
        check_inside(shard, name)
    return {"shards": shards, "shard_codes": encoded.indices.to_numpy().astype(np.uint32)}


def _places(rows: pa.Table, array: TextArray) -> ArrayPlaces:
    def column(suffix: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = rows[f"{array.name}_{suffix}"].to_numpy().astype(dtype)
        return values

    return ArrayPlaces(
        offset=column("tensor_offset", np.int64),
        nbytes=column("tensor_nbytes", np.int64),
        num_rows=column("rows", np.int32),
        length=column("length", np.int32),
        checksum=column("crc32c", np.uint32),
    )


def _row_of(text_id: str, text_ids: pa.Array, store: Store) -> int:
    row: int = pc.index(text_ids, pa.scalar(text_id, text_ids.type)).as_py()
    if row < 0:
        raise IntegrityError(f"{store.url} has no embedding of the empty caption; run jobs/encode_text.py again")
    return row


def _read_captions(table: pa.Table, ids: pa.ChunkedArray, text_ids: pa.Array) -> dict[str, CaptionForms]:
    """Number the samples and strings of the map. Forms of samples that this output does not have are left out."""
    samples = pc.index_in(table["id"], value_set=_one_array(ids.cast(table["id"].type)))
    strings = pc.index_in(table["text_id"], value_set=text_ids)
    names = table["caption"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    sample_numbers = samples.fill_null(NO_ROW).to_numpy()
    rows = strings.fill_null(NO_ROW).to_numpy()
    elements, weights = table["element"].to_numpy(), table["weight"].to_numpy()
    captions = {}
    for code, name in enumerate(names.dictionary.to_pylist()):
        chosen = np.flatnonzero((codes == code) & (sample_numbers != NO_ROW) & (rows != NO_ROW))
        chosen = chosen[np.argsort(sample_numbers[chosen], kind="stable")]
        starts = np.searchsorted(sample_numbers[chosen], np.arange(len(ids) + 1))
        captions[name] = CaptionForms(
            starts=starts.astype(np.int64),
            rows=rows[chosen].astype(np.int32),
            elements=elements[chosen].astype(np.int32),
            weights=weights[chosen].astype(np.float64),
            shown=_one_array(table["shown"].take(pa.array(chosen)).cast(pa.large_string())),
        )
    return captions


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined

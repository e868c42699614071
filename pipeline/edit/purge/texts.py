"""Text layers in a purge: which strings no remaining sample uses, and every file of a layer without them.

The files are written in this order: unit metadata with tars, indexes, strings, maps and last the plan, which names the maps.
A layer that still has a map with purged samples is therefore not done yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.edit.purge.indexes import live_indexes, plan_of, take_number
from pipeline.output.index import PurgedIndex, newest_index
from pipeline.output.index_builder import compact_index, next_index_number
from pipeline.output.layers.text_layer import (
    PURGED_STRINGS,
    TextMap,
    read_text_layer,
    strings_digest,
    strings_path,
)
from pipeline.output.layers.text_rows import ID, text_rows
from pipeline.output.plan import generation_facts, plan_path, read_plan
from pipeline.output.purges.record import Purge
from pipeline.output.purges.text_purge import is_kept, purge_text_unit
from pipeline.output.unit_metadata import newest_unit_metadata
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.store import Store
from pipeline.text.statistics import TextStatistics, collect_statistics

SUMMARY = "summary.json"


def has_purged_samples(layer: Store, purged: pa.Array) -> bool:
    """Tell if a map of the layer names purged samples. purged: their ids."""
    tables = (read_parquet(layer.get(path), ["id"]) for text_map in maps_of(layer) for path in text_map.paths)
    return any(pc.any(pc.is_in(table["id"], value_set=purged)).as_py() for table in tables)


def kept_texts(layer: Store, purged: pa.Array) -> pa.Array:
    """Text ids that remaining samples use, by any map of the layer, and those of the empty caption and the null."""
    facts = read_text_layer(layer)
    special = [id for id in (facts.empty_id, facts.null_id) if id is not None]
    chunks = [pa.array(special, pa.string())]
    for text_map in maps_of(layer):
        for path in text_map.paths:
            rows = read_parquet(layer.get(path), ["id", ID])
            used = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=purged)))[ID]
            chunks.append(pc.unique(used))
    return pc.unique(pa.chunked_array(chunks)).sort()


def maps_of(layer: Store) -> Iterator[TextMap]:
    """Yield the map of each generation of the layer's plan."""
    for generation in range(len(read_plan(layer).columns)):
        yield TextMap.from_facts(generation_facts(layer, generation))


def purge_layer(layer: Store, purge: Purge, purged: pa.Array) -> None:
    """Write every file of a layer again that names purged samples, or strings that only they used. Safe to call again.

    purged: ids of all purged samples.
    """
    kept = kept_texts(layer, purged)
    _purge_units(layer, purge, kept)
    _purge_indexes(layer, purge, kept)
    _purge_strings(layer, kept)
    _purge_units(
        layer, purge, kept
    )  # a unit that is committed from now on is purged by its encoder, which reads the strings
    for generation in range(len(read_plan(layer).columns)):
        _purge_plan(layer, generation, purged, kept)
    _purge_summary(layer)


def _purge_units(layer: Store, purge: Purge, kept: pa.Array) -> None:
    seen: set[str] = set()
    while paths := sorted(set(newest_unit_metadata(layer).values()) - seen):  # units are committed meanwhile
        for path in paths:
            seen.update(filter(None, (path, purge_text_unit(layer, path, kept, purge))))


def _purge_indexes(layer: Store, purge: Purge, kept: pa.Array) -> None:
    number = take_number(layer, purge)
    newest = newest_index(layer)
    if newest is not None and not _is_clean(layer, newest.samples + newest.rejects, kept):
        plan = plan_of(layer, newest)
        compact_index(layer, plan, text_rows(read_text_layer(layer).card), next_index_number(layer))
    for index in live_indexes(layer):
        if index.generation < number and not _is_clean(layer, index.samples + index.rejects, kept):
            layer.put(index.path, PurgedIndex(purge=purge.number, parts=index.files).to_json())
            failpoint(Failpoint.INDEX_PURGED)


def _is_clean(layer: Store, parts: list[str], kept: pa.Array) -> bool:
    return all(is_clean_table(layer, path, kept) for path in parts)


def is_clean_table(layer: Store, path: str, kept: pa.Array) -> bool:
    """Tell if all rows of a table are those of strings that are kept."""
    return pc.all(is_kept(read_parquet(layer.get(path), [ID]), kept)).as_py() is not False


def _purge_strings(layer: Store, kept: pa.Array) -> None:
    """Drop strings that are not kept from the files of planned strings."""
    for unit in read_plan(layer).units:
        path = strings_path(unit.name)
        strings = read_parquet(layer.get(path))
        left = strings.filter(is_kept(strings, kept)).replace_schema_metadata(
            {PURGED_STRINGS: str(len(unit.ordinals) - pc.sum(is_kept(strings, kept)).as_py())}
        )
        if len(left) < len(strings):
            layer.put(path, write_parquet(left.combine_chunks()))
            failpoint(Failpoint.TEXTS_PURGED)


def _purge_plan(layer: Store, generation: int, purged: pa.Array, kept: pa.Array) -> None:
    """Write a generation's map again, and then the generation, which names the map and the hashes of the strings."""
    content = layer.get(plan_path(generation))
    units = read_parquet(content)
    facts = {key.decode(): value.decode() for key, value in units.schema.metadata.items()}
    facts |= _purge_map(layer, TextMap.from_facts(facts), purged, kept).to_facts()
    strings = [layer.get(strings_path(name)) for name in units["name"].to_pylist()]
    for name, values in (("size", list(map(len, strings))), ("etag", list(map(strings_digest, strings)))):
        field = units.schema.field(name)
        units = units.set_column(units.schema.get_field_index(name), field, pa.array(values, field.type))
    new = write_parquet(units.replace_schema_metadata(facts))
    if not read_parquet(new).equals(read_parquet(content), check_metadata=True):
        layer.put(plan_path(generation), new)
        failpoint(Failpoint.TEXTS_PURGED)


def _purge_map(layer: Store, text_map: TextMap, purged: pa.Array, kept: pa.Array) -> TextMap:
    """Put the map without purged samples, and the list of text ids without those that are not kept."""
    files: list[bytes] = []
    for path in text_map.paths:
        rows = read_parquet(layer.get(path))
        files.append(write_parquet(rows.filter(pc.invert(pc.is_in(rows["id"], value_set=purged))).combine_chunks()))
    ids = read_parquet(layer.get(text_map.text_ids))
    files.append(write_parquet(ids.filter(is_kept(ids, kept)).combine_chunks()))
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files)).hexdigest()[:16]
    new = TextMap(folder=f"maps/{digest}", parts=text_map.parts, captions=text_map.captions)
    for path, content in zip([*new.paths, new.text_ids], files, strict=True):
        layer.put_new(path, content)
        failpoint(Failpoint.TEXTS_PURGED)
    return new


def _purge_summary(layer: Store) -> None:
    """Compute the numbers and examples in the layer's summary again."""
    try:
        values = json.loads(layer.get(SUMMARY))
    except (FileNotFoundError, ValueError):
        return
    index = newest_index(layer)
    statistics = TextStatistics()
    if index is not None:
        statistics = collect_statistics(layer, read_text_layer(layer), index, plan_of(layer, index).units)
        values["size_bytes"] = index.totals.size_bytes
    values["statistics"] = asdict(statistics)
    values["saved_by_trimming_bytes"] = statistics.saved_by_trimming_bytes
    values["saved_by_deduplication_bytes"] = statistics.saved_by_deduplication_bytes
    layer.put(SUMMARY, json.dumps(values, indent=1).encode())

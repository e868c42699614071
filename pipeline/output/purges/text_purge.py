"""Purges units of text layers: strings that no remaining sample uses lose their rows and their embeddings."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.layers.text_layer import strings_path
from pipeline.output.layers.text_rows import ID
from pipeline.output.purges.record import MADE_BY, Purge, newest_purge
from pipeline.output.purges.unit_purge import REPLACES, array_prefixes_of, describe_old
from pipeline.output.purges.unit_rewriting import drop_old_revisions, rewrite_unit
from pipeline.output.unit_metadata import unit_metadata_path
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def purge_text_unit(layer: Store, path: str, kept: pa.Array, purge: Purge) -> str | None:
    """Write the next revision of a unit without the rows of strings that are not ``kept``; its path, or None without any.

    path: the newest revision. kept: text ids. What it replaces stays. Safe to call again.
    """
    content = layer.get(path)
    table = read_parquet(content)
    stays = is_kept(table, kept)
    if pc.all(stays).as_py() is not False:
        return None
    arrays = array_prefixes_of(table.schema)
    dropped = table.filter(pc.invert(stays))
    facts = {MADE_BY: str(purge.number), REPLACES: describe_old(content, dropped, arrays, ID)}
    return rewrite_unit(layer, path, table.filter(stays), id=ID, arrays=arrays, facts=facts)


def settle_text_unit(output: Store, layer: Store, unit: str, ids: list[str]) -> None:
    """Purge a unit that was just committed, if a purge has taken some of its strings meanwhile.

    ids: text ids of the strings with which the unit was begun.
    """
    planned = read_parquet(layer.get(strings_path(unit)), [ID])[ID].combine_chunks()
    purge = newest_purge(output) if len(planned) < len(ids) else None
    path = None if purge is None else purge_text_unit(layer, unit_metadata_path(unit), planned, purge)
    for shard in [] if path is None else drop_old_revisions(layer, path):
        layer.delete(shard)


def is_kept(table: pa.Table, kept: pa.Array) -> pa.ChunkedArray:
    """Boolean [rows]: True for the rows whose string is kept."""
    return pc.is_in(table[ID], value_set=kept)

"""The text layers of an output as a purge sees them: what must leave them, and which of their files are clean."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.edit.purge.texts import has_purged_samples, kept_texts
from pipeline.output.edits.edits import Edits
from pipeline.output.layers.known_layers import layer_names, layer_store
from pipeline.output.layers.text_rows import ID
from pipeline.output.layout.own_files import LAYER_FILES, SHARD
from pipeline.output.purges.purged_rows import columns_to_look_at, has_purgeable_data, is_purged
from pipeline.output.purges.text_purge import is_kept
from pipeline.output.unit_metadata import newest_unit_metadata, unit_of
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.parquet import parquet_schema, read_parquet
from pipeline.storage.store import Store

FOLDERS = ("metadata", "index", "maps", "strings")
"""Folders of a layer whose tables name samples or strings."""


@dataclass(frozen=True)
class PurgedLayer:
    """A text layer of an output from which samples were removed."""

    name: str
    store: Store
    purged: pa.Array
    """Ids of all samples whose data a purge has taken, or will take."""

    @cached_property
    def names_purged_samples(self) -> bool:
        """True if the layer was not purged yet: the plan that names its maps is written last."""
        return has_purged_samples(self.store, self.purged)

    @cached_property
    def kept(self) -> pa.Array:
        """Text ids of the strings that stay."""
        return kept_texts(self.store, self.purged)

    def is_clean(self, path: str) -> bool:
        """Tell if a table of the layer names neither purged samples nor strings that are not kept."""
        content = self.store.get(path)
        names = parquet_schema(content).names
        table = read_parquet(content, [name for name in ("id", ID) if name in names])
        if "id" in names and pc.any(pc.is_in(table["id"], value_set=self.purged)).as_py():
            return False
        return ID not in names or pc.all(is_kept(table, self.kept)).as_py() is not False

    def unclean_files(self) -> Iterator[str]:
        """Yield the files of the layer that have anything of purged samples or of strings that only they used."""
        newest = newest_unit_metadata(self.store)
        for folder in FOLDERS:
            for path in self.store.list_files(folder):
                is_table = path.endswith(".parquet") and any(name.fullmatch(path) for name in LAYER_FILES)
                if is_table and not self.is_clean(path):
                    yield path
        for path in self.store.list_files("shards"):
            if SHARD.fullmatch(path) and unit_of(path) not in newest and not self._is_clean_tar(path):
                yield path

    def _is_clean_tar(self, path: str) -> bool:
        """Tell if a tar of a unit that is not committed has members of strings that are kept only."""
        try:
            ids = member_ids(self.store.get(path))
        except tarfile.TarError:
            return True  # not a tar that this program wrote
        return pc.all(pc.is_in(pa.array(ids, pa.string()), value_set=self.kept)).as_py() is not False


def member_ids(tar: bytes) -> list[str]:
    """Ids that the members of a shard are named after. TarError if it is not a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        return [member.name.partition(".")[0] for member in members]


def layers_of(output: Store, edits: Edits) -> list[PurgedLayer]:
    """The text layers of an output, with the samples that the edits remove and those that were purged before."""
    names = layer_names(output)
    if not names:
        return []
    columns = list(dict.fromkeys(["id", "reject_reason", *columns_to_look_at(edits)]))
    purged = [pa.array([], pa.string())]
    for content in map_concurrently(output.get, newest_unit_metadata(output).values()):
        table = read_parquet(content, columns)
        gone = pc.or_(has_purgeable_data(table, edits), is_purged(table))
        purged += table["id"].filter(gone).chunks
    ids = pa.concat_arrays(purged)
    return [PurgedLayer(name, layer_store(output, name), ids) for name in names]

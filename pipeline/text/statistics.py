"""Numbers of a text layer: how many strings there are, how long they are, and what trimming and de-duplication save."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.index import Index
from pipeline.output.layers.text_layer import TextLayer, read_map_part, read_text_map, strings_path
from pipeline.output.layers.text_rows import ID, column
from pipeline.output.schema import REJECT_COLUMNS, reject_names
from pipeline.sources.units import Unit
from pipeline.storage.parquet import parquet_batches, read_parquet, value_counts
from pipeline.storage.store import Store

MAX_EXAMPLES = 8
"""Number of strings that are shown for those that were cut."""
MAX_EXAMPLE_CHARACTERS = 300
ROWS_AT_ONCE = 65_536


@dataclass(kw_only=True, slots=True)
class TextStatistics:
    """Sums over a finished layer."""

    strings: int = 0
    """Number of forms of captions, over all samples."""
    distinct: int = 0
    """Number of distinct strings with an embedding, also those that no sample has any more."""
    captions: dict[str, int] = field(default_factory=dict)
    """Number of forms by name of the caption."""
    tokens: int = 0
    """Tokens of all distinct strings that went through the main encoder."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Number of distinct strings by the length that they were padded to."""
    truncated: int = 0
    """Number of distinct strings that a tokenizer cut."""
    truncated_examples: list[str] = field(default_factory=list)
    rejects: dict[str, int] = field(default_factory=dict)
    """Number of strings without an embedding by ``stage/reason``."""
    reject_examples: list[str] = field(default_factory=list)
    embedding_bytes: int = 0
    """Size of the embeddings of all distinct strings."""
    padded_bytes: int = 0
    """Size that they would have at full length."""
    repeated_bytes: int = 0
    """Size that they would have if every form of every sample had a row of its own."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TextStatistics:
        """The numbers in a ``summary.json``. TypeError if it has other fields."""
        return cls(**values | {"lengths": {int(length): count for length, count in values["lengths"].items()}})

    @property
    def saved_by_trimming_bytes(self) -> int:
        """Bytes that rows at full length would take in addition."""
        return self.padded_bytes - self.embedding_bytes

    @property
    def saved_by_deduplication_bytes(self) -> int:
        """Bytes that a row for every form of every sample would take in addition."""
        return max(0, self.repeated_bytes - self.embedding_bytes)


def collect_statistics(store: Store, layer: TextLayer, index: Index, units: list[Unit]) -> TextStatistics:
    """Read the numbers of a finished layer from its index and its newest map, in bounded memory. ``store``: the layer's."""
    statistics = TextStatistics(distinct=index.num_samples)
    lengths: Counter[int] = Counter()
    cut: list[str] = []
    sizes: list[tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]] = []
    for rows in _stored_rows(store, layer, index):
        statistics.truncated += pc.sum(rows["truncated"]).as_py() or 0
        cut += rows.filter(pc.fill_null(rows["truncated"], False))[ID].slice(0, MAX_EXAMPLES - len(cut)).to_pylist()
        nbytes = _array_bytes(layer, rows)
        sizes.append((_ids(rows[ID]), nbytes))
        statistics.embedding_bytes += int(nbytes.sum())
        tokens = rows["num_tokens"].drop_null().to_numpy()
        used = np.minimum(tokens, layer.recipe.lengths[-1])
        statistics.tokens += int(used.sum())
        lengths.update(layer.recipe.lengths[bisect_left(layer.recipe.lengths, int(n))] for n in used)
    statistics.lengths = dict(sorted(lengths.items()))
    statistics.padded_bytes = index.num_samples * layer.card.row_bytes(layer.recipe.dtype)
    _add_map(statistics, store, index, sizes)
    rejected = _add_rejects(statistics, store, index)
    texts = _texts(store, units, {*cut, *rejected})
    statistics.truncated_examples = [texts[id] for id in cut if id in texts]
    statistics.reject_examples = [f"{texts.get(id, id)}: {message}" for id, message in rejected.items()]
    return statistics


def _stored_rows(store: Store, layer: TextLayer, index: Index) -> Iterator[pa.Table]:
    columns = [ID, "num_tokens", "truncated", *(column(array, "tensor_nbytes") for array in layer.card.arrays)]
    for path in index.samples:
        yield from parquet_batches(store.get(path), columns, ROWS_AT_ONCE)


def _array_bytes(layer: TextLayer, rows: pa.Table) -> npt.NDArray[np.int64]:
    """Size of the arrays of each row."""
    sizes = [rows[column(array, "tensor_nbytes")].to_numpy() for array in layer.card.arrays]
    total: npt.NDArray[np.int64] = np.sum(sizes, axis=0)
    return total


def _add_map(statistics: TextStatistics, store: Store, index: Index, sizes: list[Any]) -> None:
    """Count the rows of the newest map, and the bytes that they would take without de-duplication."""
    ids = np.concatenate([np.zeros(0, "S10"), *(ids for ids, _ in sizes)])
    nbytes = np.concatenate([np.zeros(0, np.int64), *(nbytes for _, nbytes in sizes)])
    order = np.argsort(ids, kind="stable")
    ids, nbytes = ids[order], nbytes[order]
    captions: Counter[str] = Counter()
    for path in read_text_map(store, index.plan_generations - 1).paths:
        rows = read_map_part(store, path)
        captions.update(value_counts(rows["caption"]))
        statistics.strings += rows.num_rows
        if len(ids) and rows.num_rows:
            wanted = _ids(rows["text_id"])
            places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
            statistics.repeated_bytes += int(nbytes[places][ids[places] == wanted].sum())
    statistics.captions = dict(sorted(captions.items()))


def _add_rejects(statistics: TextStatistics, store: Store, index: Index) -> dict[str, str]:
    """Count the rejects; text id and message of some of them."""
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for path in index.rejects:
        rows = read_parquet(store.get(path), [ID, *REJECT_COLUMNS, "reject_message"])
        counts.update(value_counts(reject_names(rows)))
        some = rows.slice(0, MAX_EXAMPLES - len(messages))
        messages |= dict(zip(some[ID].to_pylist(), some["reject_message"].to_pylist(), strict=True))
    statistics.rejects = dict(sorted(counts.items()))
    return messages


def _texts(store: Store, units: list[Unit], wanted: set[str]) -> dict[str, str]:
    """The beginnings of some strings by text id. Units are read until all are found."""
    texts: dict[str, str] = {}
    for unit in units if wanted else ():
        strings = read_parquet(store.get(strings_path(unit.name)))
        found = strings.filter(pc.is_in(strings["text_id"], value_set=pa.array(wanted))).to_pylist()
        texts |= {row["text_id"]: " | ".join(row["texts"])[:MAX_EXAMPLE_CHARACTERS] for row in found}
        if len(texts) == len(wanted):
            break
    return texts


def _ids(column: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), dtype="S10")

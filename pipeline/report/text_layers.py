"""Text layers in the report, from the summaries that their jobs have written."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.output.layers.known_layers import layer_names, layer_store
from pipeline.storage.store import Store
from pipeline.text.statistics import TextStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSection:
    """Contents of the section on one layer."""

    name: str
    encoder: str = ""
    """Family of the text encoder; empty if no job of the layer has ended."""
    size_bytes: int = 0
    """Size of the shards."""
    statistics: TextStatistics | None = None
    """Its numbers; None until a job has finished it."""

    @property
    def most_strings(self) -> int:
        """Number of strings of the most frequent length."""
        return max(self.statistics.lengths.values(), default=1) if self.statistics else 1


def read_layers(output: Store) -> list[LayerSection]:
    """Read the summary of every text layer."""
    return [_read_layer(layer_store(output, name), name) for name in layer_names(output)]


def _read_layer(store: Store, name: str) -> LayerSection:
    try:
        values = json.loads(store.get("summary.json"))
        statistics = TextStatistics.from_json(values["statistics"]) if values["finished"] else None
        return LayerSection(
            name=name, encoder=str(values["encoder"]), size_bytes=int(values["size_bytes"]), statistics=statistics
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):  # none yet, or of another version
        return LayerSection(name=name)

"""Text layers that are pickled as the path of files, which worker processes map."""

from __future__ import annotations

import copyreg
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.loader.text.layer import ArrayPlaces, CaptionForms, TextLayer
from pipeline.loader.workers.column_files import map_columns, one_chunk, write_columns
from pipeline.loader.workers.worker_files import map_array, write_for_workers
from pipeline.output.layers.text_card import TextCard


class LayerFiles:
    """The files of a layer for other processes, written when they are needed first."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self._url = url
        self._folder = folder

    def write(self, layer: TextLayer) -> Path | None:
        """Return the folder of the files; None, with a warning, if they cannot be written."""
        if self._folder is None or not self._folder.is_dir():
            self._folder = write_for_workers(self, lambda folder: _write(folder, layer), self._url)
        return self._folder


def _reduce(layer: TextLayer) -> Any:
    folder = layer.files.write(layer) if isinstance(layer.files, LayerFiles) else None
    if folder is None:
        values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
        return _from_values, (values | {"files": None},)
    return restore_layer, (folder,)


def _from_values(values: dict[str, Any]) -> TextLayer:
    return TextLayer(**values)


copyreg.pickle(TextLayer, _reduce)


def restore_layer(folder: Path) -> TextLayer:
    """Map a layer from its files."""
    facts = json.loads((folder / "layer.json").read_text())
    card = TextCard.from_json(facts["card"])
    return TextLayer(
        **{name: facts[name] for name in ("name", "dtype", "shards", "empty_row", "null_row")},
        card=card,
        shard_codes=map_array(folder / "shards.npy"),
        places={array.name: ArrayPlaces(**_map(folder / f"array-{array.name}")) for array in card.arrays},
        captions={name: CaptionForms(**_map(folder / f"caption-{n}")) for n, name in enumerate(facts["captions"])},
        files=LayerFiles("", folder),
    )


def _write(folder: Path, layer: TextLayer) -> None:
    np.save(folder / "shards.npy", layer.shard_codes)
    parts: dict[str, ArrayPlaces | CaptionForms] = {f"array-{name}": places for name, places in layer.places.items()}
    parts |= {f"caption-{n}": forms for n, forms in enumerate(layer.captions.values())}
    for name, part in parts.items():
        (folder / name).mkdir()
        for field, values in _arrays(part):
            if isinstance(values, pa.Array):
                write_columns(folder / name, [(field, values)])
            else:
                np.save(folder / name / f"{field}.npy", values)
    facts = {name: getattr(layer, name) for name in ("name", "dtype", "empty_row", "null_row")}
    facts |= {"shards": list(layer.shards), "captions": list(layer.captions), "card": layer.card.to_json()}
    (folder / "layer.json").write_text(json.dumps(facts))


def _arrays(part: ArrayPlaces | CaptionForms) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        yield field.name, getattr(part, field.name)


def _map(folder: Path) -> dict[str, Any]:
    arrays = {path.stem: map_array(path) for path in sorted(folder.glob("*.npy"))}
    return arrays | {name: one_chunk(column) for name, column in map_columns(folder).items()}

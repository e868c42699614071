"""Families with several arrays or a null of their own, through the job that writes a layer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from jobs.encode_text import main
from pipeline.output.index import newest_index
from pipeline.output.layers.known_layers import layer_store
from pipeline.output.layers.text_layer import NULL_ROW_ID, read_text_layer, text_id
from pipeline.storage.store import Store
from tests.support.captioned_set import Captions, add_unit, finish
from tests.text.encoders import makers
from tests.text.encoders.comparison import embed, opened

CAPTIONS = ("a cat walks", 'a sign says "STOP" twice')


@pytest.fixture
def output(tmp_path: Path) -> Path:
    add_unit(tmp_path / "out", [Captions(caption) for caption in CAPTIONS])
    finish(tmp_path / "out")
    return tmp_path / "out"


def stored_arrays(output: Path, folder: Path) -> tuple[Store, dict[str, dict[str, Any]]]:
    """Run the job, and return the layer with the rows of its index by text id."""
    flags = ["--layer", "text", "--captions", "caption", "--local", "--cpus", "1", "--dtype", "float32"]
    assert main([str(output), "--encoder", str(folder), *flags]) == 0
    store = layer_store(Store(str(output)), "text")
    index = newest_index(store)
    assert index is not None
    tables = [pq.read_table(io.BytesIO(store.get(path))) for path in index.samples]
    return store, {row["text_id"]: row for table in tables for row in table.to_pylist()}


def stored(store: Store, row: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    """An array of a string."""
    data = store.read_range(row["shard"], row[f"{name}_tensor_offset"], row[f"{name}_tensor_nbytes"])
    return np.frombuffer(data, np.float32).reshape(row[f"{name}_rows"], -1) if data else np.zeros((0, 0), np.float32)


def test_two_encoders_have_an_array_each(output: Path, tmp_path: Path) -> None:
    qwen = makers.model("Qwen2_5_VLForConditionalGeneration", makers.qwen25_config()), makers.qwen_tokenizer()
    config = transformers.T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=37, num_layers=2, num_heads=2)
    byt5 = makers.model("T5EncoderModel", config), transformers.ByT5Tokenizer()
    folder = makers.save(tmp_path / "model", {"": qwen, "_2": byt5}, {"_class_name": "HunyuanVideo15Pipeline"})
    store, rows = stored_arrays(output, folder)
    encoder = opened(folder)
    for caption in ("", *CAPTIONS):
        row = rows[text_id(encoder.render(caption))]
        for name, expected in embed(encoder, [caption])[0].items():
            assert row[f"{name}_rows"] == row[f"{name}_length"] == len(expected.values)
            assert not row[f"{name}_rows"] or np.allclose(stored(store, row, name), expected.values, atol=1e-4)
    assert rows[text_id(encoder.render(CAPTIONS[0]))]["glyphs_rows"] == 0


def test_a_null_of_its_own_is_a_row(output: Path, tmp_path: Path) -> None:
    config = transformers.Gemma2Config(vocab_size=350, num_key_value_heads=2, head_dim=8, **makers.LAYERS)
    gemma = makers.model("Gemma2Model", config), makers.gemma_tokenizer()
    folder = makers.save(tmp_path / "model", {"": gemma}, {"_class_name": "SanaVideoPipeline"})
    store, rows = stored_arrays(output, folder)
    layer, encoder = read_text_layer(store), opened(folder)
    assert layer.null_id == NULL_ROW_ID and layer.empty_id == text_id(encoder.render(""))
    null, empty = (stored(store, rows[id], "text") for id in (layer.null_id, layer.empty_id))
    assert np.allclose(null, encoder.encode_null()["text"].values, atol=1e-4)
    assert not np.allclose(null[-1], empty[-1], atol=1e-2), "other captions have an instruction"
    assert torch.from_numpy(null).isfinite().all()

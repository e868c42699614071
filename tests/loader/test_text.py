"""Embeddings of captions in batches: each belongs to the batch's caption, whatever the ranks, the resume and the store."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.encode_text import main
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import Batch, LatentDataset
from pipeline.loader.open_sora import open_sora_batch
from pipeline.loader.text.layer import NO_ROW
from pipeline.loader.text.reading import read_texts
from pipeline.loader.torch_data import SampleDataset
from pipeline.loader.wan import wan_batch
from pipeline.text.encoder import EncoderOptions
from pipeline.text.encoders.opening import load_text_encoder
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.http_server import Reply, serving

SAMPLES = [
    *(Captions(caption=f"a dog runs, take {n}", long=f"a brown dog runs over a meadow, {n}") for n in range(8)),
    Captions(caption=None, long="no short caption here"),
    Captions(caption=["first of two", "second of two"]),
    *(Captions(caption="ein Hund läuft 🐕", score=5.5, motion=2.0) for _ in range(2)),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "out"
    add_unit(folder, SAMPLES[:5])
    add_unit(folder, SAMPLES[5:])
    finish(folder)
    assert embed(folder, "t5") == 0
    return folder


def embed(output: Path, layer: str, *flags: str, captions: str = "caption,captions,meta_long_caption") -> int:
    arguments = ["--encoder", "demo", "--layer", layer, "--captions", captions, "--local", "--cpus", "1", *flags]
    return main([str(output), *arguments])


ENCODER = load_text_encoder("demo", EncoderOptions(), "cpu", "float32")


def expected_rows(caption: str) -> torch.Tensor:
    """The embedding of a caption by the encoder itself, bfloat16 [L,D]."""
    (text,) = ENCODER.tokenize([ENCODER.render(caption)])
    (arrays,) = ENCODER.encode([text], 64)
    return torch.from_numpy(arrays["t5"].values).to(torch.bfloat16)


def check_texts(batch: Batch) -> None:
    """Assert that the embedding and the mask of every sample are those of its caption, and all else is zero."""
    assert batch["text_embeddings"].shape[:2] == batch["text_mask"].shape
    for i, caption in enumerate(batch["caption"]):
        rows, mask = batch["text_embeddings"][i], batch["text_mask"][i]
        expected = expected_rows(caption or "")
        torch.testing.assert_close(rows[: len(expected)].float(), expected.float(), atol=0.02, rtol=0.02)
        assert mask.tolist() == [True] * len(expected) + [False] * (len(mask) - len(expected))
        assert not rows[len(expected) :].any()


def all_batches(data: LatentDataset, **options: Any) -> list[Batch]:
    return list(data.batches(**{"batch_size": 4, "tail": "repeat", "rank": 0, "world_size": 1, "copy": True} | options))


MIX = {"caption": 0.4, "captions": 0.2, "meta_long_caption": 0.3, "": 0.1}


def test_every_caption_comes_with_its_own_embedding(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    batches = data.batches(4, captions=MIX, text_dropout=0.3, rank=0, world_size=1, tail="repeat")
    seen: list[str | None] = []
    for _ in range(4):
        for batch in batches:
            check_texts(batch)
            seen += batch["caption"]
            dropped = batch["text_dropped"].tolist()
            assert all(caption == "" for caption, gone in zip(batch["caption"], dropped, strict=True) if gone)
    assert {"second of two", "no short caption here", "ein Hund läuft 🐕", ""} <= set(seen)


def test_text_dropout_drops_its_share_and_changes_no_choice_of_captions(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    plain = [c for batch in all_batches(data, captions=MIX) for c in batch["caption"]]
    dropping = all_batches(data, captions=MIX, text_dropout=0.5)
    dropped = [gone for batch in dropping for gone in batch["text_dropped"].tolist()]
    kept = [c for batch in dropping for c in batch["caption"]]
    assert 1 <= sum(dropped) < len(dropped)
    assert kept == ["" if gone else caption for caption, gone in zip(plain, dropped, strict=True)]


def test_texts_do_not_depend_on_ranks_or_on_a_resume(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    options: dict[str, Any] = {"captions": MIX, "text_dropout": 0.2, "tail": "repeat", "copy": True}

    def texts(batches: Sequence[Batch]) -> dict[str, Any]:
        return {
            id: (caption, rows.sum().item())
            for batch in batches
            for id, caption, rows in zip(batch["id"], batch["caption"], batch["text_embeddings"], strict=True)
        }

    one = texts(list(data.batches(6, rank=0, world_size=1, **options)))
    two = [list(data.batches(3, rank=rank, world_size=2, **options)) for rank in range(2)]
    assert texts(two[0]) | texts(two[1]) == one
    first = data.batches(3, rank=0, world_size=2, **options)
    next(iter(first))
    second = data.batches(3, rank=0, world_size=2, **options)
    second.load_state_dict(first.state_dict())
    assert texts(list(second)) == texts(two[0][1:])


def test_packed_texts_are_the_rows_of_all_texts(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    for batch in data.batches(tokens_per_batch=16, shapes="pack", rank=0, world_size=1):
        expected = torch.cat([expected_rows(caption or "") for caption in batch["caption"]])
        torch.testing.assert_close(batch["text_embeddings"].float(), expected.float(), atol=0.02, rtol=0.02)
        assert batch["text_lengths"].tolist() == [len(expected_rows(caption or "")) for caption in batch["caption"]]


def test_blanks_have_no_text(output: Path) -> None:
    blanks = 0
    for batch in all_batches(LatentDataset(output, text="t5"), batch_size=5, tail="pad"):
        blank = ~batch["valid"]
        blanks += int(blank.sum())
        assert not batch["text_mask"][blank].any() and not batch["text_embeddings"][blank].any()
    assert blanks == 3


def test_forms_with_scores_are_chosen_per_epoch_and_shown(output: Path) -> None:
    flags = ["--aesthetic-column", "meta_score", "--motion-column", "meta_motion"]
    assert embed(output, "scores", *flags, captions="caption") == 0
    data = LatentDataset(output, where="meta_score > 0", text="scores")
    batches = data.batches(2, rank=0, world_size=1)
    shown = set()
    for _ in range(12):
        for batch in batches:
            check_texts(batch)
            shown |= set(batch["caption"])
    assert "ein Hund läuft 🐕 [aesthetic score: 5.5, motion score: 2.0]" in shown and len(shown) > 1


def test_worker_processes_map_the_layer(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    assert len(pickle.dumps(data)) < 10_000
    dataset = SampleDataset(data, captions=MIX)
    copied = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (what a worker gets)
    for i in range(len(data)):
        ours, theirs = dataset[i], copied[i]
        assert ours["caption"] == theirs["caption"] and torch.equal(ours["text_embeddings"], theirs["text_embeddings"])


def test_a_layer_is_read_from_a_web_server(output: Path) -> None:
    def answer(path: str) -> Reply:
        file = output / path.lstrip("/")
        return Reply(body=file.read_bytes()) if file.is_file() else Reply(status=404)

    with serving(answer) as server:
        data = LatentDataset(server.url, text="t5")
        for batch in all_batches(data, captions=MIX):
            check_texts(batch)


def test_without_the_layer_or_the_caption_one_sentence_says_what_to_do(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no text layer 'umt5': make one with"):
        LatentDataset(output, text="umt5")
    with pytest.raises(ConfigError, match="text_dropout drops embeddings"):
        LatentDataset(output).batches(2, text_dropout=0.1)
    table = pa.table({"id": LatentDataset(output).columns["id"], "new_caption": ["x"] * len(SAMPLES)})
    pq.write_table(table, tmp_path / "new.parquet")
    data = LatentDataset(output, join=[str(tmp_path / "new.parquet")], text="t5")
    with pytest.raises(
        ConfigError, match="no embeddings of 'new_caption'; it has caption, captions, meta_long_caption"
    ):
        data.batches(2, captions={"new_caption": 1.0})
    assert embed(output, "joined", "--join", str(tmp_path / "new.parquet"), captions="new_caption") == 0
    again = LatentDataset(output, join=[str(tmp_path / "new.parquet")], text="joined")
    check_texts(all_batches(again, captions={"new_caption": 1.0})[0])


def test_samples_that_came_after_the_layer_are_named(tmp_path: Path) -> None:
    add_unit(tmp_path, SAMPLES[:3])
    finish(tmp_path)
    assert embed(tmp_path, "t5", captions="caption") == 0
    add_unit(tmp_path, [Captions(caption="a new one")])
    finish(tmp_path)
    data = LatentDataset(tmp_path, text="t5")
    with pytest.raises(ConfigError, match="1 of 4 samples have no embedding of 'caption'"):
        data.batches(2)
    assert embed(tmp_path, "t5", captions="caption") == 0
    check_texts(all_batches(LatentDataset(tmp_path, text="t5"))[0])


def damage_a_text(output: Path, *, bits: bytes) -> None:
    """Overwrite the first value of the first text that is not the empty one."""
    data = LatentDataset(output, text="t5")
    assert data.text is not None
    row = next(n for n in range(len(data.text.shard_codes)) if n != data.text.empty_row)
    path = output / data.text.shards[data.text.shard_codes[row]]
    with path.open("r+b") as file:
        file.seek(int(data.text.places["t5"].offset[row]))
        file.write(bits)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    add_unit(tmp_path, [Captions(caption=f"caption {n}") for n in range(4)])
    finish(tmp_path)
    assert embed(tmp_path, "t5", captions="caption") == 0
    return tmp_path


def test_damaged_texts_are_found_by_their_values_and_by_checksums(small: Path) -> None:
    damage_a_text(small, bits=b"\x01")
    for batch in all_batches(LatentDataset(small, text="t5"), batch_size=2):
        assert torch.isfinite(batch["text_embeddings"].float()).all()
    with pytest.raises(
        IntegrityError, match=r"layers/t5/shards/.*: the array 't5' of a text at byte \d+ is damaged: crc32c"
    ):
        all_batches(LatentDataset(small, text="t5"), batch_size=2, verify=True)
    damage_a_text(small, bits=b"\xff\xff")
    with pytest.raises(IntegrityError, match="some values are not finite"):
        all_batches(LatentDataset(small, text="t5"), batch_size=2)


def test_a_sample_with_a_damaged_text_is_replaced_whole(small: Path) -> None:
    damage_a_text(small, bits=b"\xff\xff")
    batches = all_batches(LatentDataset(small, text="t5"), batch_size=2, on_damage="replace")
    assert sum(name is not None for batch in batches for name in batch["replaced"]) == 1
    for batch in batches:
        check_texts(batch)


def test_a_null_in_the_checkpoint_leaves_zeros_and_the_mask_of_the_caption(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    assert data.text is not None
    data.text = dataclasses.replace(data.text, null_row=NO_ROW)
    (whole,) = all_batches(data, batch_size=len(SAMPLES))
    (batch,) = all_batches(data, batch_size=len(SAMPLES), text_dropout=1.0)
    assert batch["text_dropped"].all() and not batch["text_embeddings"].any()
    assert torch.equal(batch["text_mask"], whole["text_mask"])
    ours = open_sora_batch(batch)
    assert ours["y"].shape == (len(SAMPLES), 1, *batch["text_embeddings"].shape[1:]) and "text" not in ours
    assert ours["mask"].dtype == torch.int64 and ours["text_dropped"].all()


def test_wan_gets_context_and_lengths(output: Path) -> None:
    (batch,) = all_batches(LatentDataset(output, text="t5"), batch_size=len(SAMPLES))
    wan = wan_batch(batch)
    assert wan["context"].dtype == torch.bfloat16
    assert wan["context_lengths"].tolist() == [len(expected_rows(caption or "")) for caption in batch["caption"]]
    with pytest.raises(ConfigError, match="no embeddings: open the output with"):
        wan_batch(all_batches(LatentDataset(output))[0])


def test_single_texts_are_read_with_their_padding(output: Path) -> None:
    data = LatentDataset(output, text="t5")
    assert data.text is not None
    (text,) = read_texts(data.store, data.text, [data.text.empty_row])
    rows, is_token = text["t5"].padded()
    assert rows.shape == (64, 32) and is_token.sum() == text["t5"].length == len(expected_rows(""))
    np.testing.assert_array_equal(text["t5"].tokens().float().numpy(), rows[is_token].float().numpy())

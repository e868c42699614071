"""Text layers in stores: requests, checksums, caches, signatures, tokens and outages are those of latents."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
import s3fs

from jobs.encode_text import main as encode_text
from pipeline.errors import IntegrityError, StoreError
from pipeline.loader import LatentDataset
from pipeline.loader.readers import RemoteReader, Span
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.http_server import Reply, serving

NUMBER, BATCH = 24, 2
CAPTIONS = {"caption": 0.7, "meta_long_caption": 0.3}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored-texts") / "out"
    for start in (0, NUMBER // 2):
        numbers = range(start, start + NUMBER // 2)
        add_unit(folder, [Captions(caption=f"number {n}", long=f"a longer text, {n}") for n in numbers])
    finish(folder)
    flags = ["--encoder", "demo", "--layer", "t5", "--captions", "caption,meta_long_caption", "--unit-strings", "20"]
    assert encode_text([str(folder), *flags, "--local", "--cpus", "1"]) == 0
    return folder


@pytest.fixture
def s3_output(output: Path, s3: str) -> str:
    s3fs.S3FileSystem(skip_instance_cache=True).put(str(output), f"{s3}/out", recursive=True)
    return f"{s3}/out"


def texts(data: LatentDataset, **options: bool) -> dict[str, tuple[str | None, float]]:
    """The caption of each sample, and a sum over its embedding."""
    batches = data.batches(BATCH, captions=CAPTIONS, rank=0, world_size=1, **options)
    return {
        id: (caption, rows.float().sum().item())
        for batch in batches
        for id, caption, rows in zip(batch["id"], batch["caption"], batch["text_embeddings"], strict=True)
    }


def answer_from(folder: Path, path: str) -> Reply:
    file = folder / path.partition("?")[0].lstrip("/")
    return Reply(file.read_bytes()) if file.is_file() else Reply(status=404)


@pytest.fixture
def blocks() -> Iterator[list[list[str]]]:
    """The shards of the requests that each call of ``RemoteReader.begin`` makes."""
    made: list[list[str]] = []
    begin = RemoteReader.begin

    def recording(reader: RemoteReader, batches: Sequence[list[Span]]) -> object:
        read = reader._read_range
        shards: list[str] = []
        made.append(shards)

        def record(shard: str, start: int, length: int) -> bytes:
            shards.append(shard)
            return read(shard, start, length)

        with mock.patch.object(reader, "_read_range", record):
            begun = begin(reader, batches)
            for _ in (done for filled in begun for done in filled):  # all requests are made inside of the patch
                pass
        return [iter([None] * len(spans)) for spans in batches]

    with mock.patch.object(RemoteReader, "begin", recording):
        yield made


def test_texts_and_latents_of_a_block_are_requested_together(
    output: Path, s3_output: str, blocks: list[list[str]]
) -> None:
    data = LatentDataset(s3_output, text="t5")
    assert texts(data) == texts(LatentDataset(output, text="t5"))
    assert data.text is not None
    latents, embeddings = set(data.columns["shard"].to_pylist()), set(data.text.shards)
    assert len(latents) == 2 and len(embeddings) == 3
    first, block = blocks
    assert len(first) == len({*first}) <= BATCH * 2, "the first batch is read alone"
    assert sorted(block) == sorted(latents | embeddings), "one request per shard serves all other batches"


def test_a_flipped_byte_of_a_text_in_a_store_is_found(output: Path, s3_output: str) -> None:
    data = LatentDataset(s3_output, text="t5")
    assert data.text is not None
    row = int(data.text.captions["caption"].rows[0])
    path, start = data.text.shards[data.text.shard_codes[row]], int(data.text.places["t5"].offset[row])
    content = bytearray((output / path).read_bytes())
    content[start] ^= 1
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{s3_output}/{path}", bytes(content))
    only_captions = {"captions": {"caption": 1.0}, "rank": 0, "world_size": 1}
    for options in ({}, {"verify": True}):  # from a store, checksums are compared by default
        with pytest.raises(
            IntegrityError, match=rf"{path}: the array 't5' of a text at byte {start} is damaged: crc32c"
        ):
            list(data.batches(BATCH, **only_captions, **options))
    assert len(list(data.batches(BATCH, **only_captions, verify=False))) == NUMBER // BATCH


def test_cached_texts_are_not_requested_again(output: Path, tmp_path: Path) -> None:
    with serving(lambda path: answer_from(output, path)) as server:
        for epoch in range(2):
            data = LatentDataset(server.url, text="t5", cache=tmp_path, cache_bytes=1 << 30)
            server.asked.clear()
            assert texts(data) == texts(LatentDataset(output, text="t5"))
            shards = [path for path in server.asked if path.endswith(".tar")]
            assert bool(shards) == (epoch == 0), shards


def test_signatures_and_tokens_reach_the_files_of_a_layer(output: Path) -> None:
    def answer(path: str) -> Reply:
        return answer_from(output, path) if path.endswith("?sig=x") else Reply(status=403)

    expected = texts(LatentDataset(output, text="t5"))
    with serving(answer) as server:
        assert texts(LatentDataset(f"{server.url}/?sig=x", text="t5")) == expected
    with serving(lambda path: answer_from(output, path), token=lambda: "secret") as server:
        options = {"headers": {"Authorization": "Bearer secret"}}
        assert texts(LatentDataset(server.url, text="t5", storage_options=options)) == expected
        with pytest.raises(StoreError, match=r"40[13]"):
            LatentDataset(server.url, text="t5")


def test_an_outage_of_the_texts_is_waited_out(output: Path) -> None:
    began_s: list[float] = []

    def answer(path: str) -> Reply:
        if "/layers/" in path and path.endswith(".tar"):
            began_s.append(time.monotonic())
            if time.monotonic() - began_s[0] < 1.0:
                return Reply(status=503)
        return answer_from(output, path)

    with serving(answer) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert texts(LatentDataset(server.url, text="t5")) == texts(LatentDataset(output, text="t5"))
    assert began_s[-1] - began_s[0] >= 1.0

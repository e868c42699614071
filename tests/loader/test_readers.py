"""Latents are read completely, from disk and from stores, and damage is detected."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.errors import IntegrityError, StoreError
from pipeline.loader import Batch, LatentDataset
from pipeline.loader.range_cache import RangeCache
from pipeline.loader.readers import MAX_GAP_BYTES, MAX_REQUEST_BYTES, LocalReader, MappedReader, Span, merge_spans
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.range_client import open_ranges
from pipeline.storage.store import Store
from tests.bench.range_server import range_server
from tests.support.latent_set import latent, write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(34, 32, 56)] * 8


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 samples of two buckets in three shards."""
    return write_latents(tmp_path_factory.mktemp("reading") / "out", BUCKETS, samples_per_shard=6)


def assert_right(batch: Batch, channels: slice = slice(4)) -> None:
    """Assert that raw latents equal those that were written."""
    for key, x in zip(batch["key"], batch["latents"], strict=True):
        expected = torch.from_numpy(latent(int(key), BUCKETS[int(key)], 8)[channels]).half()
        assert torch.equal(x.half(), expected), key


@pytest.mark.parametrize("options", [{}, {"mapped": True}, {"verify": True}, {"threads": 5}, {"dtype": None}])
def test_every_way_of_reading_gives_what_was_written(output: Path, options: dict[str, object]) -> None:
    batches = LatentDataset(str(output)).batches(3, normalized=False, **options)  # type: ignore[arg-type]
    for _ in range(3):
        for batch in batches:
            assert_right(batch)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_latents_have_the_stored_type_or_the_requested_one(tmp_path: Path, dtype: str) -> None:
    write_latents(tmp_path / "out", BUCKETS[:4], dtype=dtype)
    data = LatentDataset(str(tmp_path / "out"))
    stored = {b["key"][0]: b["latents"].clone() for b in data.batches(1, dtype=None, normalized=False)}
    assert {x.dtype for x in stored.values()} == {getattr(torch, dtype)} and len(stored) == 4
    for batch in data.batches(1, dtype=torch.bfloat16, normalized=False):
        assert torch.equal(batch["latents"], stored[batch["key"][0]].bfloat16())
    for key, x in stored.items():
        expected = torch.from_numpy(latent(int(key), BUCKETS[int(key)], 8)[:4])
        assert torch.equal(x[0], expected.to(getattr(torch, dtype)))


def test_buffers_of_stored_latents_are_reused_and_copies_are_not(output: Path) -> None:
    data = LatentDataset(str(output))
    kept = list(data.batches(1, dtype=None, normalized=False, copy=True))
    assert len({batch["latents"].data_ptr() for batch in kept}) == 16
    for batch in kept:
        assert_right(batch)
    batches = data.batches(1, dtype=None, normalized=False)
    addresses = {batch["latents"].data_ptr() for _ in range(4) for batch in batches}
    assert len(addresses) <= 2 * (2 + 2), (
        "two threads use at most four buffers, and each grows once, for the larger bucket"
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_converted_batches_own_their_memory(tmp_path: Path, dtype: str) -> None:
    write_latents(tmp_path / "out", BUCKETS[:8], dtype=dtype)
    data = LatentDataset(str(tmp_path / "out"))
    for options in ({"normalized": False}, {"latent": "sample"}, {"shapes": "pad"}, {}):
        batches = data.batches(1, **options)  # type: ignore[arg-type]
        kept = list(batches)
        same = data.batches(1, **options)  # type: ignore[arg-type]
        assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(kept, same, strict=True))
        assert len({batch["latents"].data_ptr() for batch in kept}) == 8


def test_reading_stops_where_training_stops(output: Path) -> None:
    import threading

    before = threading.active_count()
    batches = LatentDataset(str(output)).batches(1)
    for _ in batches:
        break
    gc.collect()
    assert threading.active_count() == before and batches.step == 1
    assert sum(1 for _ in batches) == 15, "the rest of the epoch"


@pytest.fixture(params=["obstore", "fsspec"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client that reads remote latents."""
    if request.param == "obstore":
        pytest.importorskip("obstore")
        monkeypatch.setattr("pipeline.storage.store.Store.read_range", None)
        monkeypatch.setenv("LATENTMILL_RANGE_CLIENT", "obstore")  # with its own errors, not those of the fallback
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return str(request.param)


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_remote_equals_local(
    output: Path, scheme: str, client: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    local = list(LatentDataset(str(output)).batches(3, seed=1, latent="sample"))
    if scheme == "s3":
        import s3fs

        url = request.getfixturevalue("s3") + "/out"
        s3fs.S3FileSystem(skip_instance_cache=True).put(str(output), url, recursive=True)
        remote = list(LatentDataset(url, cache=tmp_path).batches(3, seed=1, latent="sample"))
    else:
        with range_server(output, 0.0, 1e12) as url:
            remote = list(LatentDataset(url, cache=tmp_path).batches(3, seed=1, latent="sample"))
    assert [batch["id"] for batch in remote] == [batch["id"] for batch in local]
    assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(local, remote, strict=True))


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_remote_shards_that_are_gone_or_cut_are_named(
    output: Path, scheme: str, client: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shutil.copytree(output, tmp_path / "out")
    first, second = sorted((tmp_path / "out" / "shards").iterdir())[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    with contextlib.ExitStack() as stack:
        if scheme == "s3":
            import s3fs

            url = request.getfixturevalue("s3") + "/out"
            s3fs.S3FileSystem(skip_instance_cache=True).put(str(tmp_path / "out"), url, recursive=True)
        else:
            url = stack.enter_context(range_server(tmp_path / "out", 0.0, 1e12))
        read = open_ranges(Store(url))
        stack.enter_context(mock.patch.object(WAITS, "sleep"))  # retries without pauses
        for shard, offset in ((first.name, 0), (second.name, 900), (second.name, 2000)):
            with pytest.raises(StoreError, match=re.escape(f"{url}/shards/{shard}")):
                read(f"shards/{shard}", offset, 200)
        assert bytes(read(f"shards/{second.name}", 100, 200)) == second.read_bytes()[100:300]


def test_a_cache_answers_reads_and_stays_within_its_bound(output: Path, tmp_path: Path) -> None:
    sample_bytes = 4 * 5 * 4 * 4 * 2
    with range_server(output, 0.0, 1e12) as url:
        data = LatentDataset(url, where="num_frames == 17", cache=tmp_path, cache_bytes=5 * sample_bytes)
        for _ in range(3):
            for batch in data.batches(2, normalized=False):
                assert_right(batch)
        kept = [path for path in (tmp_path / "ranges").iterdir() if path.stem != "used_bytes"]
        assert len(kept) == 5 and sum(path.stat().st_size for path in kept) == 5 * sample_bytes
        kept[0].write_bytes(b"cut")  # as after a crash; the rest must be read again
        for batch in data.batches(2, normalized=False):
            assert_right(batch)


def test_a_cache_deletes_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"data")
    cache = RangeCache(tmp_path, "s3://b/out", 10)
    for offset in range(5):
        cache.write("shards/a.tar", offset, memoryview(b"1234"))
    into = bytearray(4)
    assert [cache.read("shards/a.tar", offset, memoryview(into)) for offset in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert bytes(into) == b"1234" and (tmp_path / "precious").read_bytes() == b"data"
    assert not RangeCache(tmp_path, "s3://b/other", 10).read("shards/a.tar", 0, memoryview(into)), "another output"


def test_neighbors_share_a_request_up_to_its_bounds() -> None:
    def span(shard: str, offset: int, length: int) -> Span:
        return Span(shard, offset, memoryview(bytearray(length)))

    near, far = span("a", 10 + MAX_GAP_BYTES, 5), span("a", 16 + 2 * MAX_GAP_BYTES, 5)
    spans = [far, span("b", 0, 10), near, span("a", 0, 10)]
    assert [[(s.shard, s.offset) for s in r] for r in merge_spans(spans)] == [
        [("a", 0), ("a", near.offset)],
        [("a", far.offset)],
        [("b", 0)],
    ]
    block = MAX_REQUEST_BYTES // 4
    rows = [span("a", n * block, block) for n in range(9)]
    assert [len(request) for request in merge_spans(rows)] == [4, 4, 1]


def test_bit_rot_is_found_and_named(output: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(output, tmp_path / "out")
    data = LatentDataset(str(tmp_path / "out"))
    found = data.samples.take(torch.tensor([3]).numpy(), ["shard", "tensor_offset", "tensor_nbytes", "id"])
    with (tmp_path / "out" / found["shard"][0]).open("r+b") as shard:
        shard.seek(int(found["tensor_offset"][0]) + int(found["tensor_nbytes"][0]) - 1)  # in the log-variance
        byte = shard.read(1)
        shard.seek(-1, os.SEEK_CUR)
        shard.write(bytes([byte[0] ^ 1]))
    for options in ({"mapped": True}, {"latent": "sample"}, {}):
        with pytest.raises(IntegrityError, match=rf"{found['shard'][0]}: the tensor of {found['id'][0]} .* is damaged"):
            list(data.batches(1, verify=True, **options))  # type: ignore[arg-type]
    assert len(list(data.batches(1))) == 16


@pytest.mark.parametrize("reader", [LocalReader, MappedReader])
def test_a_shard_that_was_cut_or_moved_is_named(output: Path, tmp_path: Path, reader: type) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 10)
    (whole,) = reader(str(tmp_path), lambda shard: None).begin([[Span("a.tar", 2, memoryview(into := bytearray(8)))]])
    next(whole)
    assert into == b"x" * 8
    for span, message in ((Span("a.tar", 3, memoryview(bytearray(8))), "a.tar ends before byte 11"),):
        (cut,) = reader(str(tmp_path), lambda shard: None).begin([[span]])
        with pytest.raises(StoreError, match=message):
            next(cut)
    (gone,) = reader(str(tmp_path), lambda shard: None).begin([[Span("b.tar", 0, memoryview(bytearray(8)))]])
    with pytest.raises(StoreError, match=r"b\.tar: No such file"):
        next(gone)

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.sources.discovery import find_sources
from pipeline.storage import uploads
from pipeline.storage.concurrency import map_concurrently
from pipeline.storage.drivers.clients import DRIVERS
from pipeline.storage.drivers.errors import without_secrets
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.probe import probe
from pipeline.storage.range_client import open_ranges
from pipeline.storage.retry import LONGEST_PAUSE_S, VARIABLE
from pipeline.storage.store import PARTIAL, Store
from pipeline.storage.urls import FileFacts, canonical, open_filesystem, scheme_of
from tests.support.s3_server import s3_bucket


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3") + "/out"
    return Store(url)


def test_a_file_is_created_once_and_never_replaced(store: Store) -> None:
    assert store.put_new("a/b.txt", b"first")
    assert not store.put_new("a/b.txt", b"second")
    assert store.get("a/b.txt") == b"first"


def test_one_of_many_concurrent_writers_wins_and_its_file_is_whole(store: Store) -> None:
    contents = [bytes([i]) * 200_000 for i in range(8)]
    won: list[int] = []
    barrier = threading.Barrier(len(contents))

    def write(i: int) -> None:
        barrier.wait()
        if store.put_new("race", contents[i]):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get("race") == contents[won[0]]


def test_writers_do_not_disturb_one_another_where_the_folder_of_scratch_files_comes_and_goes(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))

    def write(number: int) -> None:
        for n in range(40):
            store.put("same.json", b"{}")
            assert store.put_new(f"{number}/{n}", b"new")
            with store.scratch() as scratch:
                scratch.write_bytes(b"tar")
                assert store.put_new(f"{number}/{n}.tar", scratch)

    list(map_concurrently(write, range(4)))
    store.put("summary.json", b"{}")
    assert not (tmp_path / "out" / PARTIAL).exists()
    assert len(store.list_files("0")) == 80


def test_a_file_on_disk_is_put_under_its_name(store: Store) -> None:
    with store.scratch() as scratch:
        scratch.write_bytes(b"tar")
        assert store.put_new("shards/x.tar", scratch)
    with store.scratch() as scratch:
        scratch.write_bytes(b"other")
        assert not store.put_new("shards/x.tar", scratch)
    assert store.get("shards/x.tar") == b"tar"


def test_an_upload_large_enough_for_many_parts_is_exclusive_too(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SINGLE_REQUEST_BYTES", 1 << 20)
    store = Store(s3 + "/out")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 110)
    assert store.put_new("big", big)
    assert not store.put_new("big", big)
    assert store.size("big") == 110 << 20


def test_files_are_listed_with_their_sizes(store: Store) -> None:
    store.put_new("metadata/a.parquet", b"12345")
    store.put_new("metadata/deep/b.parquet", b"1")
    store.put_new("shards/a.tar", b"")
    assert store.list_files("metadata") == {"metadata/a.parquet": 5, "metadata/deep/b.parquet": 1}
    assert store.list_files("nothing") == {}
    assert store.size("metadata/a.parquet") == 5 and store.size("metadata/c.parquet") is None


def test_a_folder_of_an_output_is_an_output_of_its_own(store: Store) -> None:
    layer = store.below("layers/t5")
    assert layer.put_new("dataset.json", b"{}") and layer.list_files("") == {"dataset.json": 2}
    assert store.get("layers/t5/dataset.json") == b"{}" and layer.url == f"{store.url}/layers/t5"


def test_ranges_are_read_in_the_requested_order(store: Store) -> None:
    store.put_new("file", bytes(range(100)))
    assert store.read_ranges("file", [(50, 3), (0, 2)]) == [b"\x32\x33\x34", b"\x00\x01"]


def test_put_replaces_and_delete_ignores_a_missing_file(store: Store) -> None:
    store.put("summary.json", b"1")
    store.put("summary.json", b"2")
    assert store.get("summary.json") == b"2"
    store.delete("summary.json")
    store.delete("summary.json")
    with pytest.raises(FileNotFoundError):
        store.get("summary.json")


def test_the_probe_accepts_stores_that_create_only_once_and_leaves_nothing(store: Store) -> None:
    probe(store)
    assert store.list_files("") == {}


def test_the_probe_refuses_a_store_that_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "out"))
    monkeypatch.setattr(Store, "_link_new", lambda self, path, content, copied: self.put(path, content))
    with pytest.raises(ConfigError, match="--single-writer"):
        probe(store)


def test_sweeping_removes_scratch_files_of_dead_writers_only(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    with store.scratch() as living:
        living.write_bytes(b"being written")
        parts = living.name.rsplit("-", 2)
        dead = living.with_name(f"{parts[0]}-999999999-{parts[2]}")
        elsewhere = living.with_name(f"otherhost-999999999-{parts[2]}")
        dead.write_bytes(b"")
        elsewhere.write_bytes(b"")
        store.sweep()
        assert {path.name for path in (tmp_path / "out" / PARTIAL).iterdir()} == {living.name, elsewhere.name}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/out"):
        Store(str(tmp_path / "file" / "out")).put_new("a", b"")


def test_canonical_urls_carry_no_credentials_query_or_fragment() -> None:
    assert canonical("https://user:secret@host/a.tar?X-Amz-Signature=secret#x") == "https://host/a.tar"
    assert canonical("s3://bucket/a/b.tar") == "s3://bucket/a/b.tar"
    assert canonical("relative/a.tar") == "file://" + os.path.abspath("relative/a.tar")


@pytest.mark.parametrize(
    "url", ["pipe:cat x", "pipe://cat x", "zip://a.mp4::file://b.zip", "gopher://host/a", "memory://a"]
)
def test_urls_that_run_commands_or_chain_file_systems_are_refused(url: str) -> None:
    if url == "pipe:cat x":
        assert scheme_of(url) == "file", "without :// it is the name of a local file"
    else:
        with pytest.raises(ConfigError):
            scheme_of(url)


def test_facts_of_a_replaced_file_differ(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12")
    store = Store(str(tmp_path))
    before = FileFacts.of(store._fs.info(str(path)))
    path.write_bytes(b"34")
    os.utime(path, ns=(1, 1))
    assert FileFacts.of(store._fs.info(str(path))) != before


def test_the_error_of_a_full_disk_names_the_path_and_the_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=r"out/\.partial/\S+ .*: No space left on device \(\d+ bytes are free\)"):
        Store(str(tmp_path / "out")).put_new("shards/a.tar", b"tar")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_transient_errors_are_retried_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    def busy(*paths: object) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.EBUSY, "slow down")

    pauses: list[float] = []
    monkeypatch.setattr(os, "link", busy)
    monkeypatch.setenv(VARIABLE, "20")
    monkeypatch.setattr(WAITS, "sleep", pauses.append)
    with pytest.raises(StoreError, match="slow down"):
        Store(str(tmp_path / "out")).put_new("a", b"")
    assert attempts == len(pauses) + 1 and max(pauses) <= LONGEST_PAUSE_S
    assert 20.0 < sum(pauses) < 21.0


def test_a_range_beyond_the_end_of_a_file_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WAITS, "sleep", mock.Mock())
    store.put_new("file", b"12345")
    with pytest.raises(StoreError, match="got 1 of 3 bytes"):
        store.read_ranges("file", [(0, 2), (4, 3)])


def test_texts_of_errors_lose_signatures_and_passwords() -> None:
    shown = without_secrets("403, url='https://user:secret@host/a.tar?X-Amz-Signature=secret', s3://key:secret@b/c")
    assert "secret" not in shown and "host/a.tar" in shown


def test_clients_of_remote_stores_are_shared_until_their_settings_change(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, path = open_filesystem(f"{s3}/a")
    assert open_filesystem(f"{s3}/b")[0] is first and path == "bucket/a"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert open_filesystem(f"{s3}/a")[0] is not first


def test_servers_that_follow_one_another_in_a_process_are_told_apart() -> None:
    """The address of a store may come from the environment, which a notebook or a test changes."""
    for content in (b"0", b"1"):
        with s3_bucket() as url:
            store = Store(f"{url}/out")
            assert store.put_new("file", content)
            assert store.get("file") == open_ranges(store)("file", 0, 1) == content
            assert fsspec.filesystem("s3").cat("bucket/out/file") == content


ARN = "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name"


@pytest.mark.parametrize(
    ("url", "name", "path"),
    [
        ("abfs://A@acct.dfs.core.windows.net/v/x.tar", None, "A/v/x.tar"),
        ("abfs://B@acct.dfs.core.windows.net/v/x.tar", None, "B/v/x.tar"),
        ("abfs://A@other.dfs.core.windows.net/v/x.tar", None, "A/v/x.tar"),
        ("az://A/v/x#1.tar", None, "A/v/x#1.tar"),
        ("az://A/v/q?1.tar", None, "A/v/q?1.tar"),
        ("az://A/x.tar?sv=2026&sig=secret", "az://A/x.tar", None),
        ("s3://bucket/v/x#1.tar", None, "bucket/v/x#1.tar"),
        ("s3://bucket/v/q?1.tar", None, "bucket/v/q?1.tar"),
        ("s3://bucket/v/a::b.mp4", None, "bucket/v/a::b.mp4"),
        ("s3://bucket/v/zip://a::http://b.mp4", None, "bucket/v/zip://a::http://b.mp4"),
        ("s3://user:secret@bucket/v/x.tar", "s3://bucket/v/x.tar", None),
        (f"{ARN}/v/x#1.tar", None, f"{ARN.removeprefix('s3://')}/v/x#1.tar"),
        ("gs://bucket/v/x#1.tar", None, "bucket/v/x#1.tar"),
        ("hf://datasets/acme/videos@main/v/x#1 ?.tar", None, "datasets/acme/videos@main/v/x#1 ?.tar"),
        ("/v/a::b?#.mp4", "file:///v/a::b?#.mp4", "/v/a::b?#.mp4"),
    ],
)
def test_a_url_is_split_by_its_scheme(
    url: str, name: str | None, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``canonical`` keeps container, account and every character of a key, and the client is given the same key."""
    for variable, value in {"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}.items():
        monkeypatch.setenv(variable, value)
    assert canonical(url) == (name or url)
    assert canonical(canonical(url)) == canonical(url)
    if path is not None:
        fs, found = open_filesystem(url)
        assert found == path
        if "@other." in url:
            assert fs.account_name == "other"


def test_the_bucket_of_an_access_point_is_its_whole_name() -> None:
    fs, path = open_filesystem(f"{ARN}/v/x.tar")
    assert fs.split_path(path)[:2] == (ARN.removeprefix("s3://"), "v/x.tar")


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("s3a://bucket/x", "s3://bucket/x"),
        ("gcs://bucket/x", "gs://bucket/x"),
        ("abfss://C@a.dfs.core.windows.net/x", "abfs://C@a.dfs.core.windows.net/x"),
    ],
)
def test_other_spellings_of_a_scheme_are_refused_with_the_right_one(url: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"give '{right}'"):
        scheme_of(url)


def test_an_account_that_differs_between_url_and_connection_string_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=mine;AccountKey=c2VjcmV0")
    with pytest.raises(ConfigError, match=r"the URL names the account 'acct', and .* names 'mine'") as failure:
        open_filesystem("abfs://A@acct.dfs.core.windows.net/v/x.tar")
    assert "c2VjcmV0" not in str(failure.value)


@pytest.mark.parametrize(
    ("scheme", "extra"), [("s3", "s3"), ("az", "azure"), ("gs", "gcs"), ("hf", "hf"), ("https", "http")]
)
def test_a_missing_client_is_named_with_its_extra(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"s3": "s3fs", "azure": "adlfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp"}[extra]
    driver = DRIVERS[scheme].module
    monkeypatch.delitem(sys.modules, driver, raising=False)
    if extra == "http":
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for use in (find_sources, lambda urls: Store(urls[0])):
        with pytest.raises(ConfigError, match=rf"pip install 'latentmill\[{extra}\]'"):
            use([f"{scheme}://bucket/x.tar"])

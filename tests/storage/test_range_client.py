"""Ranges of files through obstore or fsspec, behind private authorities, proxies and servers with habits of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, IntegrityError, StoreError
from pipeline.storage import range_client
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.range_client import VARIABLE, open_ranges
from pipeline.storage.store import Store
from tests.support.connect_proxy import connect_proxy
from tests.support.s3_habits import checksum_of_the_whole, ignores_ranges, ranges_with_200, s3_with
from tests.support.stores.s3 import moto_tls

CONTENT = bytes(range(200))
CLIENTS = pytest.mark.parametrize("client", ["obstore", "fsspec"])
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WAITS, "sleep", lambda seconds: None)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def output(s3: str) -> str:
    Store(f"{s3}/out").put_new("file", CONTENT)
    return f"{s3}/out"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an output on a server behind TLS with a private authority."""
    with moto_tls(tmp_path_factory.mktemp("tls") / "moto") as server, server.in_environment():
        Store(f"{server.url}/out").put_new("file", CONTENT)
        yield f"{server.url}/out"


@CLIENTS
def test_every_client_trusts_a_private_authority(tls: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, client)
    assert open_ranges(Store(tls))("file", 20, 10) == CONTENT[20:30]
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(StoreError, match=r"(?i)certificate"):
        open_ranges(Store(tls))("file", 20, 10)


@CLIENTS
def test_every_client_goes_through_a_tunnel_of_the_proxy(
    tls: str, client: str, no_proxies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "https://localhost:7")  # nothing listens there
        monkeypatch.setenv(VARIABLE, client)
        assert open_ranges(Store(tls))("file", 20, 10) == CONTENT[20:30]
        assert set(proxy.asked) == {"CONNECT localhost:7 HTTP/1.1"}


@CLIENTS
def test_every_client_takes_the_proxies_of_the_environment(
    output: str, client: str, no_proxies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, client)
    with connect_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert open_ranges(Store(output))("file", 20, 10) == CONTENT[20:30]
        assert not proxy.asked
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid")  # a name that only the proxy knows
        assert open_ranges(Store(output))("file", 20, 10) == CONTENT[20:30]
        assert proxy.asked and all(" http://store.invalid/bucket/" in line for line in proxy.asked)


def test_obstore_is_replaced_where_it_refuses_an_answer(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_with(ranges_with_200):
        read = open_ranges(Store(output))
        assert read("file", 20, 10) == CONTENT[20:30] and read("file", 0, 3) == CONTENT[:3]
        monkeypatch.setenv(VARIABLE, "obstore")
        with pytest.raises(StoreError, match=f"out/file: .*non-partial.*; {VARIABLE}=fsspec reads without obstore"):
            open_ranges(Store(output))("file", 20, 10)


def test_a_server_that_ignores_ranges_is_told_from_a_cut_answer(output: str) -> None:
    with s3_with(ignores_ranges):
        message = r"out/file: the server sent 200 bytes for a range of 10: it does not answer requests for ranges"
        with pytest.raises(StoreError, match=message):
            open_ranges(Store(output))("file", 20, 10)
        with pytest.raises(StoreError, match=message):
            Store(output).read_ranges("file", [(20, 10)])


def test_a_checksum_of_the_whole_file_names_the_setting(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_with(checksum_of_the_whole):
        with pytest.raises(StoreError, match="AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"):
            Store(output).read_range("file", 20, 10)
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        assert Store(output).read_range("file", 20, 10) == CONTENT[20:30]


def test_the_client_can_be_chosen(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "curl")
    with pytest.raises(ConfigError, match=f"{VARIABLE} must be one of auto, obstore, fsspec, got 'curl'"):
        open_ranges(Store(output))
    monkeypatch.setattr(range_client.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(VARIABLE, "obstore")
    with pytest.raises(ConfigError, match="not installed"):
        open_ranges(Store(output))
    monkeypatch.setenv(VARIABLE, "auto")
    assert open_ranges(Store(output))("file", 20, 10) == CONTENT[20:30]


@pytest.mark.parametrize(
    "path", ["../file", "/etc/passwd", "a/../../b", "https://host/x", "%2e%2e/file", "..\\file", "a\0b"]
)
def test_a_path_that_leads_out_of_an_output_is_refused(path: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    for store in (Store(str(tmp_path / "out")), Store(output)):
        for verb in (store.get, store.size, store.delete, store.list_files):
            with pytest.raises(IntegrityError, match="leads out of the output"):
                verb(path)
        with pytest.raises(IntegrityError, match="leads out of the output"):
            store.put_new(path, b"")
        with pytest.raises(IntegrityError, match="leads out of the output"):
            open_ranges(store)(path, 0, 1)
    assert (tmp_path / "file").read_bytes() == CONTENT

"""Sources use the proxies of the environment. Rows of manifests do so only where the user trusts the proxy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Rejected
from pipeline.recipe import Recipe
from pipeline.sources import http_download
from pipeline.storage import retry
from tests.sources.test_sources import content_of, read_items, write_tar
from tests.support.http_server import Reply, Server, serving

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A proxy that has every file of every host, and that the environment names."""
    tar = write_tar(tmp_path / "proxied.tar", [("x.mp4", b"in the tar")]).read_bytes()
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    files = {"tar": tar, "mp4": b"through the proxy"}

    def answer(path: str) -> Reply:
        suffix = path.partition("?")[0].rpartition(".")[2]
        return Reply(files.get(suffix, b""), 200 if suffix in files else 404)

    with serving(answer) as found:
        monkeypatch.setenv("HTTP_PROXY", found.url)
        yield found


def row(tmp_path: Path, recipe: Recipe, url: str) -> bytes:
    (tmp_path / "m.jsonl").write_text(json.dumps({"url": url}))
    for plan in (tmp_path / "plan-out").rglob("*.parquet"):
        plan.unlink()
    (item,) = read_items(tmp_path, recipe, f"{tmp_path}/m.jsonl")
    return content_of(item, recipe)


def test_sources_are_read_through_the_proxy_but_for_the_hosts_in_no_proxy(
    tmp_path: Path, recipe: Recipe, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [item.content for item in read_items(tmp_path, recipe, "http://a.invalid/v/a.tar")] == [b"in the tar"]
    (item,) = read_items(tmp_path / "other", recipe, "http://a.invalid/v/b.mp4")
    assert content_of(item, recipe) == b"through the proxy"
    assert {"http://a.invalid/v/a.tar", "http://a.invalid/v/b.mp4"} <= set(proxy.asked)
    proxy.asked.clear()
    with serving(lambda path: Reply(b"direct", 200 if path == "/b.mp4" else 404)) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (item,) = read_items(tmp_path / "direct", recipe, f"{server.url}/b.mp4")
        assert content_of(item, recipe) == b"direct" and not proxy.asked


def test_rows_use_the_proxy_only_if_it_is_trusted(tmp_path: Path, recipe: Recipe, proxy: Server) -> None:
    with pytest.raises(Rejected, match="only with --trust-proxy"):
        row(tmp_path, recipe, "http://a.invalid/x.mp4")
    assert not proxy.asked
    trusting = dataclasses.replace(recipe, trust_proxy=True)
    assert row(tmp_path, trusting, "http://a.invalid/x.mp4?sig=1") == b"through the proxy"
    assert proxy.asked == ["http://a.invalid/x.mp4?sig=1"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f.1", "2130706433", "[::1]", "169.254.169.254", "localhost", "metadata.google.internal"]
)
def test_a_trusted_proxy_is_not_asked_for_what_is_plainly_private(
    tmp_path: Path, recipe: Recipe, proxy: Server, host: str
) -> None:
    with pytest.raises(Rejected) as failure:
        row(tmp_path, dataclasses.replace(recipe, trust_proxy=True), f"http://{host}/x.mp4")
    assert failure.value.reject.reason == "forbidden_url" and not proxy.asked


def test_a_redirect_behind_a_proxy_is_checked_too(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, proxy: Server
) -> None:
    with serving(lambda path: Reply(status=302, headers={"Location": "http://10.0.0.5/x.mp4"})) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        with pytest.raises(Rejected) as failure:
            row(tmp_path, dataclasses.replace(recipe, trust_proxy=True), "http://a.invalid/x.mp4")
        assert failure.value.reject.reason == "forbidden_url" and server.asked == ["http://a.invalid/x.mp4"]


def test_no_proxy_hosts_of_rows_are_checked_as_without_a_proxy(
    tmp_path: Path, recipe: Recipe, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda path: Reply(b"private")) as server, pytest.raises(Rejected) as failure:
        row(tmp_path, dataclasses.replace(recipe, trust_proxy=True), f"{server.url}/x.mp4")
    assert failure.value.reject.reason == "forbidden_url" and not proxy.asked and not server.asked


def test_the_password_of_a_proxy_is_sent_and_not_said(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, proxy: Server
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:hunter2@"))
    assert (
        row(tmp_path, dataclasses.replace(recipe, trust_proxy=True), "http://a.invalid/x.mp4") == b"through the proxy"
    )
    monkeypatch.setenv("HTTP_PROXY", "http://me:hunter2@127.0.0.1:1")
    with pytest.raises(Rejected) as failure:
        row(tmp_path, dataclasses.replace(recipe, trust_proxy=True), "http://a.invalid/x.mp4")
    assert "hunter2" not in failure.value.reject.message


def test_another_kind_of_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: Server) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError, match="expected http:// or https://"):
        http_download.proxy_of(http_download.URL("http://a.invalid/x"))

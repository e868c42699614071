"""Manifests reach no private networks, local files or pipes, and downloads survive hostile servers."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Reject, Rejected, SourceChanged
from pipeline.recipe import Recipe
from pipeline.sources import http_download
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item
from pipeline.storage import retry
from tests.sources.test_sources import content_of, read_items
from tests.support.http_server import Reply, Server, serving

NAMES = {
    "private.example": ["10.0.0.5"],
    "metadata.example": ["169.254.169.254"],
    "localhost.example": ["127.0.0.1"],
    "v6.example": ["::1"],
    "mapped.example": ["::ffff:10.0.0.5"],
    "both.example": ["10.0.0.5", "fd00::1"],
    "metadata.google.internal": ["169.254.169.254"],
}


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.3")


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve without a network. Addresses resolve as usual, in all of their spellings."""
    table = dict(NAMES)
    ask = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host in table:
            return [found for address in table[host] for found in ask(address, port, type=socket.SOCK_STREAM)]
        return ask(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda path: Reply(b"video", 200 if path.endswith("/a.mp4") else 404, {"ETag": '"1"'})) as found:
        yield found


def rows(tmp_path: Path, recipe: Recipe, *targets: str) -> list[Item]:
    for plan in (tmp_path / "plan-out").rglob("*.parquet"):
        plan.unlink()
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"url": target}) + "\n" for target in targets))
    return read_items(tmp_path, dataclasses.replace(recipe, unit_clips=100), f"{tmp_path}/m.jsonl")


def rejected(item: Item, recipe: Recipe) -> Reject:
    with pytest.raises(Rejected) as failure:
        fetch(item, recipe).close()
    return failure.value.reject


FORBIDDEN = [
    "http://127.0.0.1:{port}/a.mp4",
    "http://127.1:{port}/a.mp4",
    "http://2130706433:{port}/a.mp4",
    "http://0x7f000001:{port}/a.mp4",
    "http://0x7f.1:{port}/a.mp4",
    "http://0177.0.0.1:{port}/a.mp4",
    "http://0.0.0.0:{port}/a.mp4",
    "http://0:{port}/a.mp4",
    "http://[::ffff:7f00:1]:{port}/a.mp4",
    "http://[0:0:0:0:0:0:0:1]:{port}/a.mp4",
    "http://[::1]:{port}/a.mp4",
    "http://[fe80:0:0:0:0:0:0:1]/a.mp4",
    "http://[fd00:ec2:0:0:0:0:0:254]/latest/meta-data/",
    "http://[64:ff9b:0:0:0:0:a9fe:a9fe]/latest/meta-data/",
    "http://[2002:7f00:1:0:0:0:0:0]:{port}/a.mp4",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://10.0.0.5/a.mp4",
    "http://172.16.3.4/a.mp4",
    "http://192.168.1.1/a.mp4",
    "http://100.64.0.1/a.mp4",
    "http://224.0.0.1/a.mp4",
    "http://255.255.255.255/a.mp4",
    "http://240.0.0.1/a.mp4",
    "http://user:hunter2@127.0.0.1:{port}/a.mp4",
    "http://93.184.216.34@127.0.0.1:{port}/a.mp4",
    "http://127.0.0.1:{port}\\@93.184.216.34/a.mp4",
    "http://127.0.0.1:{port}#@93.184.216.34/a.mp4",
    *(f"http://{name}:{{port}}/a.mp4" for name in NAMES),
    "https://127.0.0.1:{port}/a.mp4",
    "http:///a.mp4",
    "http://a..example/a.mp4",
    f"http://{'a' * 64}.example/a.mp4",
    "http://[::1/a.mp4",
    "http://127.0.0.1:99999999/a.mp4",
    "ftp://127.0.0.1/a.mp4",
    "gopher://127.0.0.1:{port}/_GET",
    "pipe:cat /etc/passwd",
    "pipe://cat /etc/passwd",
    "data:video/mp4;base64,AAAA",
    "simplecache::http://127.0.0.1:{port}/a.mp4",
    "zip://a.mp4::http://127.0.0.1:{port}/a.zip",
    "FILE:///etc/passwd",
    "local:///etc/passwd",
    "reference://x",
    "github://org:repo@/x",
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_manifest_reaches_no_private_address_and_nothing_but_files_and_http(
    tmp_path: Path, recipe: Recipe, server: Server, target: str
) -> None:
    target = target.format(port=server.url.rpartition(":")[2])
    (item,) = rows(tmp_path, recipe, target)
    fault = rejected(item, recipe)
    # without "://" it names a file beside the manifest, which does not exist
    expected = "forbidden_url" if "://" in target or "::" in target else "not_found"
    assert (fault.stage, fault.reason) == ("fetch", expected), fault.message
    assert server.asked == []
    assert "hunter2" not in item.key + item.uri + fault.message


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("64:ff9b:1::5db8:d822", False),
        ("::ffff:168.63.129.16", False),
        ("168.63.129.17", True),
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b::7f00:1", False),
        ("::ffff:93.184.216.34", True),
        ("::ffff:169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::", False),
        ("2002:a9fe:a9fe::", False),
        ("198.18.0.1", False),
        ("192.0.2.1", False),
        ("100.127.255.255", False),
    ],
)
def test_public_addresses_are_recognized(address: str, public: bool) -> None:
    assert http_download.is_public(address) is public


def test_a_remote_manifest_reaches_no_local_file(tmp_path: Path, recipe: Recipe) -> None:
    targets = ["/etc/passwd", "file:///etc/passwd", "../../../../etc/passwd", "a.mp4?signature=SECRET#x"]
    manifest = "".join(json.dumps({"url": target}) + "\n" for target in targets).encode()
    with serving(lambda path: Reply(manifest if path == "/d/m.jsonl" else b"video")) as server:
        allowed = dataclasses.replace(recipe, private_hosts=("127.0.0.1",))
        found = read_items(tmp_path, allowed, f"{server.url}/d/m.jsonl")
        assert [item.fault and item.fault.reason for item in found] == ["forbidden_url", "forbidden_url", None, None]
        assert content_of(found[2], allowed) == content_of(found[3], allowed) == b"video"
        assert server.asked[-2:] == ["/etc/passwd", "/d/a.mp4?signature=SECRET"]
        assert found[3].key == "a.mp4" and found[3].uri == f"{server.url}/d/a.mp4"
        assert rejected(found[2], recipe).reason == "forbidden_url", "the manifest's own host is private, too"


def test_an_allowed_host_is_reached_but_not_what_it_redirects_to(
    tmp_path: Path, recipe: Recipe, names: dict[str, list[str]], server: Server
) -> None:
    recipe = dataclasses.replace(recipe, private_hosts=("media.example",))
    names["media.example"] = ["127.0.0.1"]
    places = {
        "/here": "/video",
        "/there": f"{server.url}/a.mp4",
        "/metadata": "http://169.254.169.254/latest/",
        "/file": "file:///etc/passwd",
        "/data": "data:video/mp4;base64,AAAA",
        "/nowhere": "",
        "/round": "/round",
    }

    def answer(path: str) -> Reply:
        if path in places:
            return Reply(status=302, headers={"Location": places[path]})
        return Reply(b"video", headers={"ETag": '"x"'})

    with serving(answer) as media:
        port = media.url.rpartition(":")[2]
        found = rows(tmp_path, recipe, *(f"http://Media.example:{port}{path}" for path in ["/video", *places]))
        assert content_of(found[0], recipe) == content_of(found[1], recipe) == b"video"
        assert found[0].facts is not None and (found[0].facts.size, found[0].facts.etag) == (5, "x")
        reasons = [rejected(item, recipe).reason for item in found[2:]]
    assert reasons == ["forbidden_url"] * 4 + ["http_error"] * 2
    assert server.asked == []


def test_a_name_that_becomes_private_after_a_lookup_is_not_connected_to(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """DNS rebinding: the first lookup gives a public address, the connection's own lookup a private one."""
    answers = ["93.184.216.34", "127.0.0.1", "127.0.0.1"]
    port = int(server.url.rpartition(":")[2])
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **o: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]
    )
    socket.getaddrinfo("rebinding.example", port)
    (item,) = rows(tmp_path, recipe, f"http://rebinding.example:{port}/a.mp4")
    assert rejected(item, recipe).reason == "forbidden_url" and server.asked == []


def test_sources_of_the_command_line_may_be_private(tmp_path: Path, recipe: Recipe, server: Server) -> None:
    (item,) = read_items(tmp_path, recipe, f"{server.url}/a.mp4")
    assert content_of(item, recipe) == b"video"


BODY = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("reply", "reason", "is_tried_again"),
    [
        (Reply(BODY), None, False),
        (Reply(BODY, status=404), "not_found", False),
        (Reply(BODY, status=403), "http_error", False),
        (Reply(BODY, status=503), "http_error", True),
        (Reply(BODY, status=204), "http_error", False),
        (Reply(BODY, cut_at=100), "http_error", True),
        (Reply(BODY, headers={"Content-Length": str(1 << 40)}), "too_large", False),
        (Reply(BODY, headers={"Content-Length": "-5"}), "http_error", False),
        (Reply(BODY, headers={"Content-Encoding": "gzip"}), "http_error", False),
        (Reply(BODY, headers={"Content-Encoding": "gzip, gzip"}), "http_error", False),
    ],
)
def test_every_answer_of_a_server_is_a_file_or_a_reject(
    tmp_path: Path, recipe: Recipe, reply: Reply, reason: str | None, is_tried_again: bool
) -> None:
    recipe = dataclasses.replace(recipe, private_hosts=("127.0.0.1",), max_item_bytes=1 << 20)
    with serving(lambda path: reply) as server:
        (item,) = rows(tmp_path, recipe, f"{server.url}/a.mp4?signature=SECRET")
        if reason is None:
            assert content_of(item, recipe) == BODY
        else:
            fault = rejected(item, recipe)
            assert (fault.stage, fault.reason) == ("fetch", reason) and "SECRET" not in fault.message
        assert (len(server.asked) > 1) == is_tried_again


def test_a_body_without_end_stops_at_the_size_limit(tmp_path: Path, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, private_hosts=("127.0.0.1",), max_item_bytes=1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        import threading

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        (item,) = rows(tmp_path, recipe, f"http://127.0.0.1:{listener.getsockname()[1]}/a.mp4")
        assert rejected(item, recipe).reason == "too_large"


def test_a_download_that_never_ends_times_out(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "DOWNLOAD_TIMEOUT_S", 0.5)
    recipe = dataclasses.replace(recipe, private_hosts=("127.0.0.1",))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (item,) = rows(tmp_path, recipe, f"http://127.0.0.1:{listener.getsockname()[1]}/a.mp4")
        assert rejected(item, recipe).reason == "timeout"


def test_a_server_that_is_gone_is_a_reject_for_manifests(tmp_path: Path, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, private_hosts=("127.0.0.1",))
    with serving(lambda path: Reply()) as server:
        pass
    (item,) = rows(tmp_path, recipe, f"{server.url}/a.mp4?signature=SECRET")
    fault = rejected(item, recipe)
    assert fault.reason == "http_error" and "SECRET" not in fault.message


def test_a_planned_file_that_is_gone_from_its_server_stops_the_job(tmp_path: Path, recipe: Recipe) -> None:
    there = {"/a.mp4": b"video"}
    with serving(lambda path: Reply(there.get(path, b""), 200 if path in there else 404)) as server:
        (item,) = read_items(tmp_path, recipe, f"{server.url}/a.mp4")
        there.clear()
        with pytest.raises(SourceChanged, match="gone now"):
            fetch(item, recipe)

"""Stores that fail for a while, or never answer, while a training job reads from them."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.bucket import Bucket
from pipeline.errors import StoreError
from pipeline.loader import LatentDataset
from pipeline.storage import range_client, retry
from pipeline.storage.drivers import http, waits
from pipeline.storage.drivers.waits import StoreWarning, Waits
from tests.support.http_server import Reply, serving
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

CLIENTS = pytest.mark.parametrize("client", ["obstore", "fsspec"])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("set") / "out", [Bucket(1, 32, 32)] * 16)


def answer_from(folder: Path, path: str) -> Reply:
    file = folder / path.partition("?")[0].lstrip("/")
    return Reply(file.read_bytes()) if file.is_file() else Reply(status=404)


@contextmanager
def silent_shards(folder: Path) -> Iterator[str]:
    """A server that gives all files but the shards, for which it keeps connections open without an answer."""
    over = threading.Event()

    def answer(path: str) -> Reply:
        if path.endswith(".tar"):
            over.wait()
        return answer_from(folder, path)

    with serving(answer) as server:
        try:
            yield server.url
        finally:
            over.set()


@CLIENTS
def test_an_outage_is_waited_out_and_said_in_a_warning(
    output: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store answers 503 or breaks connections for longer than a fixed number of quick retries would take."""
    monkeypatch.setenv(range_client.VARIABLE, client)
    monkeypatch.setenv(retry.VARIABLE, "60")
    monkeypatch.setattr(waits, "SHORTEST_SHOWN_S", 0.5)
    monkeypatch.setattr(waits, "WAITS", process := Waits())
    process.warns = True
    began_s: list[float] = []
    count = 0

    def answer(path: str) -> Reply:
        nonlocal count
        if not path.endswith(".tar"):
            return answer_from(output, path)
        began_s.append(time.monotonic())
        count += 1
        if time.monotonic() - began_s[0] < 3.0:
            return Reply(status=503) if count % 2 else Reply(b"x" * 9, cut_at=1)
        return answer_from(output, path)

    with serving(answer) as server, warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        ids = [name for batch in LatentDataset(server.url).batches(4) for name in batch["id"]]
    assert len(set(ids)) == 16 and began_s[-1] - began_s[0] >= 3.0
    texts = [str(warning.message) for warning in given if issubclass(warning.category, StoreWarning)]
    pattern = rf"waiting \d+ s for {server.url}/shards/\S+\.tar \(.+\), retry \d+; gives up after 60 s"
    assert len(texts) == 1 and re.fullmatch(pattern, texts[0]), texts


@CLIENTS
def test_a_store_that_never_answers_ends_in_one_sentence(
    output: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(range_client.VARIABLE, client)
    monkeypatch.setenv(retry.VARIABLE, "1.5")
    monkeypatch.setitem(range_client.TIMEOUTS, "timeout", "1s")
    monkeypatch.setattr(http, "TIMEOUT", http.ClientTimeout(total=None, sock_connect=1.0, sock_read=1.0))
    monkeypatch.setenv("NO_PROXY", f"127.0.0.1,{client}")  # a setting that differs gives a new client
    with silent_shards(output) as url:
        start_s = time.monotonic()
        with pytest.raises(StoreError) as failure:
            next(iter(LatentDataset(url).batches(4)))
    assert time.monotonic() - start_s < 8
    assert re.fullmatch(
        rf"{url}/shards/\S+\.tar: (the server did not answer in time|Timeout on reading data from socket)"
        r"; tried \d+ times in \d+ s",
        str(failure.value),
    )


INTERRUPTED = """
import sys
from pipeline.loader import LatentDataset
data = LatentDataset(sys.argv[1])
print("open", flush=True)
for batch in data.batches(4):
    pass
"""


@CLIENTS
def test_ctrl_c_ends_a_loop_that_waits_for_a_silent_store_at_once(output: Path, client: str) -> None:
    environment = os.environ | {range_client.VARIABLE: client, retry.VARIABLE: "600"}
    with silent_shards(output) as url:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, url],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(1.0)
        start_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - start_s < 5 and err.rstrip().endswith("KeyboardInterrupt"), err
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_ends_the_opening_of_a_silent_store_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/out"
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, url], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        silent.accept()
        time.sleep(0.3)
        start_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert time.monotonic() - start_s < 5 and process.returncode == -signal.SIGINT


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_local_disk_that_fails_for_a_moment_is_read_again(
    output: Path, number: int, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a network disk: the first reads of each file fail, and ESTALE needs the file opened anew."""
    failed: list[str] = []
    open_file = os.open

    def failing_open(path: object, *arguments: int) -> int:
        if str(path).endswith(".tar") and failed.count(str(path)) < 2:
            failed.append(str(path))
            raise OSError(number, os.strerror(number))
        return open_file(path, *arguments)  # type: ignore[arg-type]

    data = LatentDataset(output)
    monkeypatch.setattr(os, "open", failing_open)
    assert len([batch for batch in data.batches(4, mapped=mapped)]) == 4
    assert len(failed) == 4


def test_a_local_disk_that_stays_broken_is_named(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setenv(retry.VARIABLE, "0.5")
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StoreError, match=rf"{output}/shards/\S+\.tar: Input/output error; tried \d+ times in \d s"):
        next(iter(LatentDataset(output).batches(4)))

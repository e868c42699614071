"""The loader in a training image: without the packages of encoding, and without what only Linux has."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
IMPORT_NAMES = {
    "pillow": ["PIL"],
    "pyyaml": ["yaml"],
    "google-crc32c": ["google_crc32c"],
    "jinja2": [],  # torch needs them too
    "markupsafe": [],
}
"""Modules of a package, where they do not have its name."""

WITHOUT_PACKAGES = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
"""
"""Makes the packages that the loader does not need look absent."""

WITHOUT_LINUX = """
import errno, os, signal, sys
import torch, numpy, pyarrow.parquet, pyarrow.dataset, fsspec, filelock, safetensors, google_crc32c, tenacity, einops
import torch.utils.data, multiprocessing.pool, tempfile, fsspec.implementations.local, subprocess, asyncio

filelock.FileLock = filelock.SoftFileLock  # the class for Linux needs what is removed below
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in {
    os: "preadv pread readv O_CLOEXEC O_NONBLOCK O_DIRECTORY sched_getaffinity getuid geteuid getpgid killpg sysconf "
        "posix_fadvise memfd_create register_at_fork fork link mkfifo",
    errno: "EREMOTEIO",
    signal: "SIGKILL SIGHUP SIGALRM",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
"""Removes what Windows or macOS lacks, after the packages that know about those systems have been imported."""

READ = (ROOT / "tests" / "support" / "loader_reads.py").read_text()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples of two buckets."""
    return write_latents(tmp_path_factory.mktemp("light") / "out", [Bucket(17, 32, 32), Bucket(1, 32, 32)] * 4)


def packages(requirements: list[str]) -> set[str]:
    """Names of the packages that requirements name."""
    return {Requirement(text).name.lower() for text in requirements}


def modules_of(package: str) -> list[str]:
    """Top modules of a package."""
    return IMPORT_NAMES.get(package, [package])


def read_in_a_fresh_process(preparation: str, output: Path, folder: Path) -> dict[str, Any]:
    """Read an output in several ways, after a preparation of the interpreter. It must see what this process sees."""
    code = preparation + READ.replace("from __future__ import annotations", "")
    done = subprocess.run(
        [sys.executable, "-c", code, output, folder / "cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ids = [batch["id"] for batch in LatentDataset(str(output)).batches(2, seed=1)]
    assert len(ids) == 4 and [seen[0] for seen in result["seen"]] == ids * 5
    assert len({json.dumps(seen) for seen in result["seen"]}) == 4, "every way gives the same latents"
    return result


def test_the_loader_needs_no_package_of_an_extra(output: Path, tmp_path: Path) -> None:
    """Every package that only an extra brings looks absent; the loader and the cards of ``stvae`` work without them."""
    needed = packages(PROJECT["dependencies"])
    extra = {name for requirements in OPTIONAL.values() for name in packages(requirements)} - needed
    assert {"ray", "diffusers", "av", "decord", "aiohttp", "pillow", "braceexpand", "yarl", "pyyaml"} <= extra
    blocked = {module for package in extra for module in modules_of(package)}
    result = read_in_a_fresh_process(f"BLOCKED = {blocked!r}{WITHOUT_PACKAGES}", output, tmp_path)
    rooms = {".".join(name.split(".")[:2]) for name in result["modules"] if name.startswith("pipeline.")}
    assert "pipeline.loader" in rooms and not rooms & {"pipeline.video", "pipeline.sources", "pipeline.encode"}
    assert needed <= {*packages(OPTIONAL["encode"])}, "encoding pins what the loader takes loosely"


def test_the_loader_imports_every_package_that_it_requires(output: Path, tmp_path: Path) -> None:
    loaded = read_in_a_fresh_process("", output, tmp_path)["modules"]
    for package in packages(PROJECT["dependencies"]):
        assert set(modules_of(package)) <= set(loaded), f"{package} is required, but not imported"


def test_the_loader_reads_without_what_only_linux_has(output: Path, tmp_path: Path) -> None:
    read_in_a_fresh_process(WITHOUT_LINUX, output, tmp_path)

"""Rules that keep the parts apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MODULES = [*sorted((ROOT / "stvae").glob("*.py")), *sorted((ROOT / "pipeline").glob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_dependencies_point_one_way(path: Path) -> None:
    assert "jobs" not in imports(path)
    if path.parent.name == "stvae":
        assert not imports(path) & {"pipeline", "ray", "av", "decord", "pyarrow"}


def test_only_the_store_opens_urls_and_nothing_unpickles() -> None:
    users = {path.name for path in MODULES if imports(path) & {"fsspec", "obstore"}}
    assert users == {"store.py", "range_client.py", "weights.py"}
    for path in MODULES:
        assert "pickle" not in imports(path)
        assert "torch.load(" not in path.read_text()


def test_what_decides_about_commits_knows_no_clock_and_no_chance() -> None:
    for name in ("plan", "shards", "tars", "index", "columns", "clips", "items", "sources", "manifests"):
        assert not imports(ROOT / "pipeline" / f"{name}.py") & {"time", "datetime", "random", "uuid", "secrets"}, name


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.run", ["torch", "diffusers", "av", "decord", "ray", "aiohttp", "PIL"]),
        ("jobs.encode_dataset", ["torch", "diffusers", "av", "decord", "ray", "PIL"]),
        ("jobs.report", ["torch", "diffusers", "av", "decord", "ray", "PIL"]),
        ("pipeline.loader", ["av", "decord", "diffusers", "ray", "PIL"]),
        ("stvae", ["torch", "diffusers"]),
    ],
)
def test_importing_stays_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"

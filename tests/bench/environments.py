"""Reads a small output with other versions of Python and packages: ``python -m tests.bench.environments``.

Builds the wheel, installs it without extras into a virtual environment for each combination, and runs
``tests/support/loader_reads.py`` there on an output that this environment has written. Every environment must see the
ids, captions and latents that this one sees. Prints ``passed``, ``failed`` or ``not run``, with the reason and the
versions; exit code 1 if one has failed. PyPI's torch brings CUDA, so an environment takes minutes and 3 to 7 GB; it is
removed before the next one, unless ``--keep`` names a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bucket import Bucket
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

READS = ROOT / "tests" / "support" / "loader_reads.py"
CANNOT_RESOLVE = ("ResolutionImpossible", "conflicting dependencies", "requires a different Python")
"""Words of pip for bounds that contradict each other, which is our fault and not the index's."""


@dataclass(frozen=True)
class Combination:
    """Versions that exist together. ``packages`` are requirements beside those of the wheel."""

    python: str
    packages: str = ""


COMBINATIONS = {
    "oldest": Combination(
        "3.10",
        "torch==2.4.* numpy==1.26.* pyarrow==17.* fsspec==2024.6.* safetensors==0.4.3 google-crc32c==1.5.0 "
        "tenacity==8.2.* filelock==3.12.* einops==0.7.*",
    ),
    "winter-2025": Combination("3.11", "torch==2.6.* numpy==2.1.* pyarrow==19.* fsspec==2024.12.*"),
    "autumn-2025": Combination("3.13", "torch==2.9.* numpy==2.3.* pyarrow==21.* fsspec==2025.9.*"),
    "spring-2026": Combination("3.12", "torch==2.11.* numpy==2.4.* pyarrow==23.* fsspec==2026.2.*"),
    "newest": Combination("3.14"),
    "newest-3.12": Combination("3.12"),
}
"""Combinations by the name that the command takes."""


@dataclass(frozen=True)
class Outcome:
    """Result of a combination: ``passed``, or ``failed`` or ``not run`` with the reason."""

    result: str
    reason: str = ""
    versions: str = ""


def find_python(version: str) -> str | None:
    """Path of a Python of this version that runs, from PATH or pyenv; None if there is none."""
    for candidate in _candidates(version):
        asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[str]:
    on_path = shutil.which(f"python{version}")
    yield from [on_path] if on_path else []
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted((root / "versions").glob(f"{version}*/bin/python"), reverse=True))


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy, so that the build leaves nothing in the repository."""
    for name in ("pipeline", "stvae"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / "source" / name)
    options = ["--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def read_with(python: str | Path, output: Path, folder: Path) -> dict[str, Any]:
    """Run the program that reads with a Python, away from the repository. CalledProcessError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    cache = tempfile.mkdtemp(dir=folder)
    command = [str(python), str(shutil.copy(READS, folder)), str(output), cache]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def try_combination(
    combination: Combination, wheel: Path, output: Path, expected: list[Any], environment: Path
) -> Outcome:
    """Make the environment of a combination, and read there."""
    python = find_python(combination.python)
    if python is None:
        return Outcome("not run", f"no Python {combination.python} on this machine")
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    inner = environment / "bin" / "python"
    options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    install = [str(inner), "-m", "pip", "install", *options, str(wheel), *combination.packages.split()]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        ours = any(words in installed.stdout + installed.stderr for words in CANNOT_RESOLVE)
        return Outcome("failed" if ours else "not run", f"pip: {_last_error(installed.stderr)}")
    try:
        result = read_with(inner, output, environment)
    except subprocess.CalledProcessError as error:
        return Outcome("failed", _last_error(error.stderr))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    if result["seen"] != expected:
        return Outcome("failed", "it sees other batches than this environment", versions)
    return Outcome("passed", versions=versions)


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].strip() if lines else "no message"


def main() -> int:
    """Try the combinations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(COMBINATIONS)} (default: all)")
    parser.add_argument("--keep", type=Path, help="folder for the environments, which stay")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - COMBINATIONS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        output = write_latents(folder / "output", [Bucket(17, 32, 32), Bucket(1, 32, 56)] * 8)
        expected = read_in_this_environment(output, folder)
        wheel = build_wheel(folder)
        print("| combination | Python | result | versions or reason |\n|---|---|---|---|")
        for name in arguments.names or COMBINATIONS:
            environment = (arguments.keep or folder) / name
            outcome = try_combination(COMBINATIONS[name], wheel, output, expected, environment)
            outcomes.append(outcome.result)
            details = "; ".join(filter(None, (outcome.reason, outcome.versions)))
            print(f"| {name} | {COMBINATIONS[name].python} | {outcome.result} | {details} |", flush=True)
            if arguments.keep is None:
                shutil.rmtree(environment, ignore_errors=True)
    return int("failed" in outcomes)


def read_in_this_environment(output: Path, folder: Path) -> list[Any]:
    """What the environment of this process sees, through the code of this repository."""
    command = [sys.executable, "-m", "tests.support.loader_reads", str(output), str(folder / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen: list[Any] = json.loads(done.stdout.splitlines()[-1])["seen"]
    return seen


if __name__ == "__main__":
    sys.exit(main())

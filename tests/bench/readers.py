"""Tries readers that are too large for the tests: ``python -m tests.bench.readers``.

Makes a virtual environment that sees the packages of this one, installs each reader there, and runs its test. Prints the
version and ``passed``, ``failed`` or ``not run``; exit code 1 if one has failed. ``--keep`` names a folder for the
environment, which then stays and is used again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.support.paths import ROOT

READERS = {"megatron-energon": "tests/loader/test_page_recipes.py::test_the_recipe_of_energon"}
"""Test of each package."""


def environment_python(folder: Path) -> Path:
    """Python of an environment in a folder, which is made if it is not there. It sees this environment's packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def try_reader(python: Path, package: str, test: str) -> tuple[str, str]:
    """Install a package and run its test. Returns the result, and the version or the reason."""
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), package]
    installed = subprocess.run([python, *install], capture_output=True, text=True, check=False)
    if installed.returncode:
        return "not run", (installed.stderr.strip().splitlines() or ["pip failed"])[-1]
    asked = f"from importlib.metadata import version; print(version('{package}'))"
    version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run([python, "-m", "pytest", test], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        return "failed", version
    return ("passed" if done.stdout.startswith(".") else "not run"), version


def main() -> int:
    """Try all readers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the environment, which stays")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        python = environment_python(arguments.keep or Path(temporary) / "environment")
        for package, test in READERS.items():
            result, details = try_reader(python, package, test)
            results.append(result)
            print(f"{package}: {result} ({details})")
    return int("failed" in results)


if __name__ == "__main__":
    sys.exit(main())

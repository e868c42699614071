"""Builds the wheel, installs it into an empty environment and encodes with it outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.clips_maker import make_clip
from tests.support.paths import ROOT

ENCODE_AND_READ = """
import sys
from pipeline.loader import LatentDataset
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from stvae import read_card

card = read_card("demo")
recipe = Recipe(vae=card.sha256, buckets=(Bucket(17, 64, 112),), micro_batch=(2,))
run = Run(output="latents", vae="demo", sources=("clips",), local=True, cpus=2)
encode(recipe, run, card, print)
(batch,) = LatentDataset("latents").batches(batch_size=2)
print(tuple(batch["latents"].shape), sys.modules["pipeline"].__file__, sys.modules["stvae"].__file__, sep="\\n")
"""


def python_lines(*arguments: str | Path, folder: Path) -> list[str]:
    """Run a Python with these arguments in a folder; the lines that it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "stvae"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / "source" / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    python_lines(sys.executable, "-m", "pip", "wheel", *options, "./source", folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_room_and_its_data(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for name in ("pipeline", "stvae") for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in files if path.suffix not in (".md", ".pyc")}
    assert {"pipeline/report/page.html", "pipeline/report/page.css", "stvae/demo/model.safetensors"} <= expected
    assert packed == expected


def test_an_installed_wheel_encodes_and_reads(wheel: Path, tmp_path: Path) -> None:
    """The environment sees the packages of this one, but not the repository, which only a ``.pth`` here names."""
    environment = tmp_path / "environment"
    python_lines(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    python = environment / "bin" / "python"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python_lines(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, folder=tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"])
    dry_run = ("--dry-run", "--no-index", "--disable-pip-version-check")
    shown = python_lines(
        sys.executable, "-m", "pip", "--python", python, "install", *dry_run, f"{wheel}[encode,s3]", folder=tmp_path
    )
    assert any(line.startswith("Requirement already satisfied: ray[") for line in shown)
    assert "Would install" not in "".join(shown), "the packages of the tests are those that the extras ask for"
    for number in range(2):
        make_clip(tmp_path / "clips" / f"{number}.mp4", 17, seed=number)
    *_, shape, pipeline, stvae = python_lines(python, "-c", ENCODE_AND_READ, folder=tmp_path)
    assert shape == "(2, 4, 5, 8, 14)"
    assert Path(pipeline).is_relative_to(environment) and Path(stvae).is_relative_to(environment)

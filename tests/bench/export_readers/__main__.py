"""Reads exports with the trainers' own dataset classes: ``python -m tests.bench.export_readers --readers FOLDER``.

Makes a mixed set for each family of models (images, clips of two sizes, Unicode, several captions, one caption missing),
with its own class of VAE and its own text encoders in a tiny size, and exports it. Each reader runs in a process of its own;
every tensor and every value that it gives is compared with our loader's. FOLDER has the code of the trainers, and
``--how`` prints the commands that get it. ``--python`` names a Python whose environment has the small packages that the
trainers' code imports: cloudpickle, toml, voluptuous, loguru, omegaconf and mmengine. Exit code 1 if a value differs.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.export_dataset import main as export_dataset
from tests.bench.export_readers.catalog import READERS, Reader, how_to_get
from tests.bench.export_readers.comparison import differences
from tests.bench.export_readers.sets import BUCKETS, MAKERS
from tests.support.export_set import LAYER, Expected
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Outcome:
    """Result of a reader: ``passed``, ``failed`` or ``not run``."""

    result: str
    samples: int = 0
    details: str = ""


def version_of(folder: Path) -> str:
    """The commit of a clone, or the version of an unpacked wheel."""
    for metadata in sorted(folder.glob("*.dist-info")):
        return metadata.name.removesuffix(".dist-info").rpartition("-")[2]
    done = subprocess.run(
        ["git", "-C", folder, "log", "-1", "--format=%h"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown version"


def try_reader(name: str, code: Path, python: str, output: Path, folder: Path) -> Outcome:
    """Export a set and compare what a reader gives with what the loader gives."""
    reader = READERS[name]
    _, video = BUCKETS
    where = f"num_frames == {video.num_frames} and height == {video.height}" if reader.one_size else None
    export = folder / "export"
    flags = ["--to", reader.target, "--output", str(export), "--text", LAYER, "--local"]
    if export_dataset([str(output), *flags, *(["--where", where] if where else [])]) != 0:
        return Outcome("failed", details="the export is refused")
    command = [python, "-m", "tests.bench.export_readers.reading", name, *map(str, (code, export, folder / "read"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome("not run" if last.startswith("ModuleNotFoundError") else "failed", details=last)
    read = torch.load(folder / "read", weights_only=True)
    found = differences(name, Expected(output, where), read["samples"])
    details = "; ".join(found[:5]) or _notes(reader, read["stubs"])
    return Outcome("failed" if found else "passed", len(read["samples"]), details)


def _notes(reader: Reader, stubs: list[str]) -> str:
    skipped = f"__init__ of {', '.join(reader.skipped)} not run" if reader.skipped else ""
    stand_ins = f"stand-in for {', '.join(stubs)}" if stubs else ""
    return "; ".join(filter(None, (f"not tried: {reader.left_out}", skipped, stand_ins)))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("EXPORT_READERS")
    parser.add_argument(
        "--readers", type=Path, default=folder and Path(folder), metavar="FOLDER", help="trainers' code"
    )
    parser.add_argument("--reader", action="append", choices=READERS, help="a reader to try (default: all); repeatable")
    parser.add_argument("--python", default=sys.executable, help="Python for the readers (default: this one)")
    parser.add_argument("--how", action="store_true", help="print the commands that get the trainers' code, and stop")
    arguments = parser.parse_args()
    if arguments.readers is None and not arguments.how:
        parser.error("give --readers FOLDER, or set EXPORT_READERS; --how prints how to fill it")
    return arguments


def main() -> int:
    """Try the chosen readers and print a row for each. Returns the exit code."""
    arguments = parse_arguments()
    names = arguments.reader or list(READERS)
    if arguments.how:
        print("\n".join(how_to_get(names, str(arguments.readers or "readers"))))
        return 0
    rows = [("reader", "version", "samples", "result", "notes"), ("---",) * 5]
    with tempfile.TemporaryDirectory() as temporary:
        outputs: dict[str, Path] = {}
        for name in names:
            outcome = _prove(name, arguments, Path(temporary), outputs)
            reader = READERS[name]
            version = version_of(arguments.readers / reader.folder) if outcome.result != "not run" else ""
            rows.append((reader.title, version, str(outcome.samples), outcome.result, outcome.details))
            print(f"{name}: {outcome.result}", file=sys.stderr, flush=True)
    for row in rows:
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return int(any(row[3] == "failed" for row in rows))


def _prove(name: str, arguments: argparse.Namespace, temporary: Path, outputs: dict[str, Path]) -> Outcome:
    """Try one reader. ``outputs``: the sets that are made, by the family of their model."""
    reader, folder = READERS[name], temporary / name
    code = arguments.readers.resolve()
    if not (code / reader.folder).is_dir():
        return Outcome("not run", details=f"get it: {how_to_get([name], str(arguments.readers))[0]}")
    folder.mkdir()
    with redirect_stdout(io.StringIO()) as printed:
        if reader.model not in outputs:
            outputs[reader.model] = MAKERS[reader.model](temporary / f"set-{reader.model}")
        outcome = try_reader(name, code, arguments.python, outputs[reader.model], folder)
    if outcome.result == "failed":
        print(printed.getvalue(), file=sys.stderr)
    return outcome


if __name__ == "__main__":
    sys.exit(main())

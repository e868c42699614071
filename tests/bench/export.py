"""Exports many made-up samples: ``python -m tests.bench.export`` (shorter: ``--samples 1000 5000``).

Prints samples per second and the memory of the exporting process for each number of samples: without text and, with
``energon``, with the embedding of every caption. Latents are tiny, so that the time is that of the
exporter and of the format, and memory that grows with the number of samples shows. The last column is that growth, per
sample. Each export runs in a process of its own, as ``jobs/export_dataset.py --local`` does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.encode_text import main as encode_text
from jobs.export_dataset import main as export_dataset
from pipeline.bucket import Bucket
from tests.support.latent_set import write_latents
from tests.support.paths import ROOT

BUCKETS = (Bucket(1, 16, 16), Bucket(5, 16, 32))
SAMPLES_PER_UNIT = 1000
CAPTIONS = 2000
"""Number of distinct captions, so that making the text layer takes no longer than the exports."""


def make_output(folder: Path, samples: int) -> None:
    """Write an output, and a text layer of all its captions."""
    write_latents(
        folder, [BUCKETS[n % 2] for n in range(samples)], samples_per_shard=SAMPLES_PER_UNIT, distinct_captions=CAPTIONS
    )
    assert encode_text([str(folder), *"--encoder demo --layer t5 --captions caption --local --cpus 1".split()]) == 0


def export(arguments: list[str]) -> None:
    """Export in this process, and print the seconds and the memory that it took."""
    started_s = time.perf_counter()
    assert export_dataset(arguments) == 0
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - started_s, "mb": peak_mb}))


def in_process(step: str, arguments: list[str]) -> dict[str, Any]:
    """Run a step in a process of its own, and return what it prints last."""
    command = [sys.executable, "-m", "tests.bench.export", "--step", step, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    """Export each number of samples and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--to", nargs="+", default=["parquet", "energon"], metavar="TARGET")
    parser.add_argument("--step", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        step, *rest = arguments.step
        if step == "make":
            make_output(Path(rest[0]), int(rest[1]))
            print("{}")
        else:
            export(rest)
        return 0
    first_mb: dict[str, float] = {}
    print(f"{'target':<12} {'samples':>8} {'samples/s':>10} {'peak':>8} {'growth per sample':>18}")
    for samples in arguments.samples:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            in_process("make", [str(folder / "out"), str(samples)])
            for target in arguments.to:
                text = [] if target == "parquet" else ["--text", "t5"]
                where = [str(folder / "out"), "--to", target, "--local", "--output", str(folder / target), *text]
                took = in_process("export", where)
                start_mb = first_mb.setdefault(target, took["mb"])
                grown = (took["mb"] - start_mb) * 1024 / max(1, samples - arguments.samples[0])
                print(
                    f"{target:<12} {samples:>8} {samples / took['seconds']:>10.0f} {took['mb']:>5.0f} MB "
                    f"{grown:>15.2f} kB",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

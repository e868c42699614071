"""Compare the loader's speed with other loaders: ``python -m tests.bench.loader``.

All loaders read one synthetic set of samples like Open-Sora's (4x15x60x106, float16) and return shuffled batches of 8 in
host memory, in one process. Every round runs all of them, so that only ratios within a round count; the bench prints their
medians and spreads. ``ours`` returns stored values in reused buffers, as a GPU gets them. ``ours, float32 normalized``
also converts and normalizes on the CPU. Values are checked to be finite in all of ours. Loaders that are not installed are
left out: litdata, and mosaicml-streaming, which needs transformers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from pipeline.bucket import Bucket
from pipeline.loader import Batches, LatentDataset
from pipeline.loader.schedule.epoch import schedule_epoch
from pipeline.loader.schedule.policy import BatchPolicy, BatchSize, TokenBudget
from tests.bench import loader_peers
from tests.bench.range_server import range_server
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(51, 480, 848, "one"), Bucket(51, 480, 848, "two")]
"""Buckets of one size, in two groups that take turns."""
BATCH = 8
Contestant = Callable[[], int]


def ours(url: str, **options: object) -> Contestant:
    """Read one epoch per run, with the same ``Batches`` object each time, as training does."""
    batches = LatentDataset(url).batches(BATCH, **({"dtype": None, "normalized": False} | options))  # type: ignore[arg-type]
    return lambda: sum(len(batch["latents"]) for batch in batches)


def plain_read(shards: list[Path], num_samples: int) -> Contestant:
    """Read the tars from start to end, without looking at their content."""

    def run() -> int:
        for shard in shards:
            with shard.open("rb", buffering=0) as file:
                while file.read(BATCH << 20):
                    pass
        return num_samples

    return run


def race(title: str, contestants: dict[str, Contestant], rounds: int) -> None:
    """Print the samples per second of each contestant, and how many times faster the first one is."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm
    for number in range(rounds):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started_s = time.perf_counter()
            count = contestants[name]()
            rates[name].append(count / (time.perf_counter() - started_s))
    first = next(iter(contestants))
    print(f"\n{title}: {rounds} interleaved rounds\n{'':32s} samples/s   times faster: {first}")
    for name in sorted(rates, key=lambda name: -statistics.median(rates[name])):
        ratios = sorted(a / b for a, b in zip(rates[first], rates[name], strict=True))
        spread = f"{statistics.median(ratios):6.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:32s} {statistics.median(rates[name]):9.0f}   {spread}", flush=True)


def bench_local(output: Path, num_samples: int, rounds: int) -> None:
    url, shards = str(output), sorted((output / "shards").iterdir())
    contestants = {
        "ours": ours(url),
        "ours, mapped": ours(url, mapped=True),
        "ours, float32 normalized": ours(url, dtype=torch.float32, normalized=True),
        "ours, bfloat16 normalized": ours(url, dtype=torch.bfloat16, normalized=True),
        "ours, two groups by weight": ours(url, groups={"one": 0.5, "two": 0.5}),
        "ours, four further columns": ours(url, columns=["meta_score", "start_s", "group", "crop_top"]),
        "ours, crc32c checked": ours(url, verify=True),
        "read() of the tars, in order": plain_read(shards, num_samples),
        **loader_peers.local(output, shards, BATCH),
    }
    race("local, warm", contestants, rounds)


def bench_remote(output: Path, rounds: int) -> None:
    with range_server(output, latency_s=0.03, bytes_per_s=90e6) as url:
        shards = [f"{url}/shards/{path.name}" for path in sorted((output / "shards").iterdir())][:2]
        first = LatentDataset(str(output)).columns["shard"].unique().to_pylist()[:2]
        data = LatentDataset(url, where=f"shard in {first!r}")
        batches = data.batches(BATCH, dtype=None, normalized=False)
        contestants: dict[str, Contestant] = {
            "ours": lambda: sum(len(batch["latents"]) for batch in batches),
            "ours, without obstore": lambda: _without_obstore(batches),
            "one range request at a time": lambda: sum(
                len(data.read(np.array([row]))) for row in np.random.default_rng(0).permutation(len(data))[:40]
            ),
            **loader_peers.remote(shards, BATCH),
        }
        race("range server, 30 ms to the first byte, 90 MB/s per connection", contestants, rounds)


def _without_obstore(batches: Batches) -> int:
    with mock.patch("importlib.util.find_spec", lambda name: None):
        return sum(len(batch["latents"]) for batch in batches)


def bench_resume(output: Path, rounds: int) -> None:
    """Measure the time from a saved state to the batch after it."""
    times_ms: dict[str, list[float]] = {"dataset opened": [], "batches made, state loaded": [], "first batch": []}
    with tempfile.TemporaryDirectory() as cache:
        LatentDataset(str(output), cache=cache)
        for number in range(rounds + 1):
            started_s = time.perf_counter()
            data = LatentDataset(str(output), cache=cache)
            marks = [time.perf_counter()]
            batches = data.batches(BATCH, dtype=None, normalized=False)
            batches.load_state_dict(batches.state_dict() | {"epoch": 3, "step": len(batches) // 2})
            marks.append(time.perf_counter())
            next(iter(batches))
            marks.append(time.perf_counter())
            for name, mark in zip(times_ms, marks, strict=True):
                if number:
                    times_ms[name].append((mark - started_s) * 1e3)
    print("\nresume in the middle of epoch 3, ms from the start (median, worst)")
    for name, values in times_ms.items():
        print(f"{name:32s} {statistics.median(values):6.1f} {max(values):6.1f}")


def bench_memory(output: Path) -> None:
    """Print the resident memory after each epoch, measured in a separate process."""
    for options in ("dtype=None, normalized=False", ""):
        print(f"\nresident MB after each of ten epochs: {_memory(output, options)} {options}")


def _memory(output: Path, options: str) -> str:
    code = f"""
from pathlib import Path
from pipeline.loader import Batches, LatentDataset
batches = LatentDataset({str(output)!r}).batches({BATCH}, {options})
for _ in range(10):
    for batch in batches: pass
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), end=" ", flush=True)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def bench_schedule() -> None:
    """Time the schedules of ten million rows in forty buckets."""
    rng, count = np.random.default_rng(0), 10_000_000
    keys, codes = rng.integers(0, 2**64, count, dtype=np.uint64), rng.integers(0, 40, count).astype(np.uint16)
    print("\nten million rows in 40 buckets, seconds to schedule an epoch")
    for policy in (BatchPolicy(budget=BatchSize(8)), BatchPolicy(budget=TokenBudget(40_000), shapes="pack")):
        started_s = time.perf_counter()
        epoch = schedule_epoch(keys, codes, np.arange(40) * 100 + 1000, policy, 0, 0)
        print(f"{policy.shapes:32s} {time.perf_counter() - started_s:6.1f}   {len(epoch)} steps")


def main() -> None:
    """Write the set if it does not exist, then run the benches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="folder that keeps the set for later runs")
    every = ["local", "remote", "resume", "memory", "schedule"]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = (arguments.folder or Path(temporary)) / f"two-groups-{arguments.samples}"
        if not output.exists():
            print(f"writing {arguments.samples} samples to {output}", flush=True)
            write_latents(
                output, [BUCKETS[n % 2] for n in range(arguments.samples)], samples_per_shard=250, store="mean"
            )
        if "local" in arguments.only:
            bench_local(output, arguments.samples, arguments.rounds)
        if "remote" in arguments.only:
            bench_remote(output, arguments.rounds)
        if "resume" in arguments.only:
            bench_resume(output, arguments.rounds)
        if "memory" in arguments.only:
            bench_memory(output)
        if "schedule" in arguments.only:
            bench_schedule()


if __name__ == "__main__":
    main()

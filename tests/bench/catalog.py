"""Time the opening of an index of millions of samples, its schedule, and resuming: ``python -m tests.bench.catalog``.

Every line is a separate process, like the ranks of a node. The first process makes the cache, the others map it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bucket import Bucket
from pipeline.output.index_parts import ROWS_PER_PART
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(frames, *size) for frames in (17, 34, 51) for size in ((32, 32), (32, 56), (56, 32))]
CAPTION = "a large rabbit beside its burrow in a meadow while three rodents look on from a tree, seen from afar"
OPEN = """
import re, sys, time
from pipeline.loader import LatentDataset
marks = [time.perf_counter()]
data = LatentDataset(sys.argv[1], cache=sys.argv[2])
marks.append(time.perf_counter())
batches = data.batches(8, seed=int(sys.argv[3]), dtype=None, normalized=False)
batches.load_state_dict(batches.state_dict() | {"epoch": 1, "step": 100})
steps = len(batches)
marks.append(time.perf_counter())
times = [f"{b - a:9.3f}" for a, b in zip(marks, marks[1:])]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(*times, f"{peak:9.0f}   {steps} steps")
"""


def write_index(output: Path, rows: int) -> None:
    """Write an output whose index lists ``rows`` samples. Latents exist for a few of them only."""
    write_latents(output, BUCKETS * 20, samples_per_shard=20)
    path = output / "index" / "0000.json"
    index = json.loads(path.read_text())
    few = pq.read_table(output / index["samples"][0])
    folder, rng, parts = Path(index["samples"][0]).parent, np.random.default_rng(0), []
    for n, start in enumerate(range(0, rows, ROWS_PER_PART)):
        count = min(ROWS_PER_PART, rows - start)
        table = few.take(pa.array(np.sort(rng.integers(0, len(few), count))))
        digits = rng.bytes(10 * count).hex()
        new = {
            "id": [digits[i : i + 20] for i in range(0, 20 * count, 20)],
            "caption": [f"{start + i} {CAPTION}" for i in range(count)],
        }
        for name, values in new.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        parts.append(f"{folder}/samples-{n:05d}.parquet")
        pq.write_table(table, output / parts[-1], compression="zstd")
    path.write_text(json.dumps(index | {"samples": parts, "num_samples": rows}))


def main() -> None:
    """Write the index and open it in three processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output, cache = Path(folder) / "latents", Path(folder) / "cache"
        write_index(output, arguments.rows)
        print(f"{arguments.rows} rows{'':32s}opened, s  resumed, s  peak, MB")
        for title, seed in (("cache and schedule made", 0), ("both mapped", 0), ("cache mapped, new schedule", 1)):
            command = [sys.executable, "-c", OPEN, str(output), str(cache), str(seed)]
            print(f"{title:40s}", subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")
        size_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        print(f"{size_bytes / 1e9:.1f} GB of cache")


if __name__ == "__main__":
    main()

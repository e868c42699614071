"""Measure what worker processes cost for a large index: ``python -m tests.bench.workers``.

It prints the size of the pickle that each worker gets, the time to make it, and the memory of two spawned workers.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.loader import LatentDataset
from pipeline.loader.torch_data import SampleDataset
from tests.bench.catalog import write_index


class MemoryOfWorkers(torch.utils.data.Dataset[dict[str, int]]):
    """Takes rows of a set in a worker process, and returns the process's memory."""

    def __init__(self, dataset: SampleDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, int]:
        """The worker's number and its memory in KiB."""
        samples = self.dataset.data.samples
        samples.take(np.arange(index, len(samples.rows), 1000), ["caption", "id", "meta_score"])
        return {"pid": os.getpid()} | memory_kib()


def memory_kib() -> dict[str, int]:
    """Resident memory of this process, and the part that no other process shares, in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"resident": values["Rss"], "private": values["Private_Clean"] + values["Private_Dirty"]}


def main() -> None:
    """Write the index, pickle the set, and start the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "latents", arguments.rows)
        dataset = SampleDataset(LatentDataset(Path(folder) / "latents"))
        start_s = time.perf_counter()
        size_bytes = len(pickle.dumps(dataset))
        print(f"{arguments.rows} rows: {size_bytes} bytes of pickle, made in {time.perf_counter() - start_s:.1f} s")
        loader: Any = torch.utils.data.DataLoader(
            MemoryOfWorkers(dataset), batch_size=None, num_workers=2, multiprocessing_context="spawn"
        )
        print(f"this process: {memory_kib()}")
        for worker in loader:
            print(f"worker: {worker}")


if __name__ == "__main__":
    main()

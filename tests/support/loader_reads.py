"""A program that reads an output in every basic way and prints what it saw: ``python loader_reads.py OUTPUT CACHE``.

It imports nothing but the installed package, so that it runs in any environment. It prints one line of JSON: the ids and
a hash of the latents of each batch, the modules that are loaded, and the versions of packages.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from typing import Any

from torch.utils.data import DataLoader

from pipeline.loader import LatentDataset
from pipeline.loader.open_sora import open_sora_batch
from pipeline.loader.torch_data import SampleDataset, StepSampler
from stvae import read_card

PACKAGES = ("torch", "numpy", "pyarrow", "fsspec")


def seen_in(batch: Any) -> list[Any]:
    """Ids, captions and the hash of the latents of a batch."""
    latents = batch["latents"].numpy().tobytes()
    return [list(batch["id"]), list(batch["caption"]), hashlib.sha256(latents).hexdigest()]


def read(output: str, cache: str) -> list[list[Any]]:
    """Read by system calls, memory maps, with a cache, with a filter, and through a DataLoader."""
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({}, {"mapped": True}),
        ({"cache": cache}, {}),
        ({"where": "meta_score / 2 < 100"}, {"columns": ["meta_score"]}),
    ]
    seen = []
    for opened, iterated in ways:
        data = LatentDataset(output, **opened)
        seen += [seen_in(batch) for batch in data.batches(2, seed=1, verify=True, **iterated)]
    sampler = StepSampler(data, 2, seed=1)
    seen += [seen_in(batch) for batch in DataLoader(SampleDataset(data, seed=1), batch_sampler=sampler)]
    open_sora_batch(next(iter(LatentDataset(output).batches(2))))
    return seen


def main() -> None:
    """Read and print."""
    read_card("demo")
    seen = read(*sys.argv[1:])
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(
        json.dumps(
            {
                "seen": seen,
                "modules": sorted(sys.modules),
                "versions": {"python": platform.python_version(), **versions},
            }
        )
    )


if __name__ == "__main__":
    main()

"""Read the same samples with other projects' loaders, used as their documentation shows: shuffled batches, one process."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Contestant = Callable[[], int]


def local(output: Path, shards: list[Path], batch_size: int) -> dict[str, Contestant]:
    """Return the loaders that are installed. Those with a format of their own get a copy of the set in it."""
    contestants = {"webdataset, shuffle(200)": webdataset([str(shard) for shard in shards], batch_size)}
    if importlib.util.find_spec("litdata"):
        contestants["litdata, shuffle"] = litdata(output, batch_size)
    if importlib.util.find_spec("streaming"):
        contestants["mosaicml-streaming, shuffle"] = mosaic(output, batch_size)
    return contestants


def remote(urls: list[str], batch_size: int) -> dict[str, Contestant]:
    """Return the loaders that read from any web server."""
    return {"webdataset, curl, shuffle(200)": webdataset([f"pipe:curl -s {url}" for url in urls], batch_size)}


def webdataset(urls: list[str], batch_size: int) -> Contestant:
    import webdataset as wds

    def run() -> int:
        dataset = (
            wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
            .shuffle(200)
            .decode(only=["latent.npy"])
            .to_tuple("latent.npy")
            .batched(batch_size, partial=True)
        )
        return sum(len(torch.as_tensor(latents)) for (latents,) in dataset)

    return run


def litdata(output: Path, batch_size: int) -> Contestant:
    folder = output.with_name(f"{output.name}-litdata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming.writer import BinaryWriter
    if not folder.exists():
        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_bytes=190 << 20)
        for n, latent in enumerate(latents(output)):
            writer[n] = {"latent": torch.from_numpy(latent)}
        writer.done()
        writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0)
    return lambda: sum(len(batch["latent"]) for batch in loader)


def mosaic(output: Path, batch_size: int) -> Contestant:
    if (
        importlib.util.find_spec("torchvision") is None
    ):  # streaming imports it for image datasets, which this bench does not use
        with contextlib.suppress(ImportError):
            for name in ("transformers", "transformers.generation.utils"):
                importlib.import_module(name)  # must look for torchvision before the stand-in exists
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            module: Any = types.ModuleType(name)
            module.__getattr__ = lambda _: type("Absent", (), {})
            module.__path__ = []
            sys.modules[name] = module
    from streaming import MDSWriter, StreamingDataset

    folder = output.with_name(f"{output.name}-mds")
    if not folder.exists():
        with MDSWriter(
            out=str(folder), columns={"latent": "ndarray:float16:4,15,60,106"}, size_limit=190 << 20
        ) as writer:
            for latent in latents(output):
                writer.write({"latent": latent})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size)
    return lambda: sum(len(batch["latent"]) for batch in loader)


def latents(output: Path) -> Iterator[np.ndarray]:
    from pipeline.loader import LatentDataset

    data = LatentDataset(str(output))
    for row in range(len(data)):
        yield data.read(np.array([row]))[0]

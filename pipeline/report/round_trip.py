"""Samples as people see them: frames of the source above the same frames decoded from the latent."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import unit_of
from pipeline.output.verify import Comparison
from pipeline.recipe import Bucket, Run
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.sources.formats import items
from pipeline.sources.item import Item
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Frames
from pipeline.video.windows import select_windows
from stvae import load_vae
from stvae.vae import VAE

Array = npt.NDArray[np.float32]


def source_frames(run: Run, data: LatentDataset, rows: Sequence[int]) -> Iterator[Frames]:
    """The frames uint8 [T,H,W,3] that samples were encoded from, decoded again from their sources."""
    with SourceFrames(run, data) as sources:
        for row in rows:
            yield sources.frames(row)


class SourceFrames:
    """What samples were encoded from: where it was, or where ``run.sources`` says that it is now."""

    def __init__(self, run: Run, data: LatentDataset) -> None:
        plan = read_plan(data.store)
        self._data = data
        self._units = {unit.name: unit for unit in plan.units}
        self._columns = plan.columns
        self._urls = {source.name: source.url for source in find_sources(run.sources)} if run.sources else {}
        self._decoders = Decoders(data.recipe, run)

    def frames(self, row: int) -> Frames:
        """The frames uint8 [T,H,W,3] of a sample. LatentmillError or Rejected if they can no longer be had."""
        found = self._data.columns.select(["shard", "ordinal", "window", "uri"]).slice(row, 1).to_pylist()[0]
        unit = self._units[unit_of(found["shard"])]
        for item in items(
            unit, self._urls.get(unit.source, unit.source), self._data.recipe, self._columns[unit.generation]
        ):
            if item.ordinal == found["ordinal"]:
                return self._clip(item, found).frames_THWC
        raise _changed(found)

    def _clip(self, item: Item, row: dict[str, Any]) -> Clip:
        plan = partial(select_windows, recipe=self._data.recipe, geometry=self._data.card.geometry)
        with open(fetch(item, self._data.recipe), "rb", buffering=0) as file:
            for _, outcome in self._decoders.clips(file.fileno(), plan):
                if isinstance(outcome, Clip) and outcome.window.index == row["window"]:
                    return outcome
        raise _changed(row)

    def __enter__(self) -> SourceFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()


def _changed(row: dict[str, Any]) -> ConfigError:
    return ConfigError(f"the source of this sample is no longer what it was: {row['uri']}")


def decode_back(vae: VAE, data: LatentDataset, row: int) -> Frames:
    """A sample's frames uint8 [T,H,W,3] as the VAE restores them from the stored mean."""
    latent = torch.from_numpy(data.read(np.array([row]))[0].astype(np.float32))
    pixels = vae.decode(latent[None], data.columns["num_frames"][row].as_py())
    frames: Frames = pixels[0].permute(1, 2, 3, 0).cpu().numpy()
    return frames


def psnr_db(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio of 8-bit frames in decibels."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def compare(run: Run, count: int, seed: int) -> Iterator[Comparison]:
    """Decode and encode ``count`` random samples again, with the micro-batch and the type that the recipe fixed.

    On the kind of device that made them they are equal but for the rounding of the stored type. ConfigError if
    ``run.VAE`` is not the output's VAE, or a source is not what it was.
    """
    data = LatentDataset(run.output)
    recipe = data.recipe
    vae = load_vae(run.vae, device="cuda" if run.gpus else "cpu", dtype=recipe.compute_dtype)
    if vae.card.sha256 != recipe.vae:
        raise ConfigError(f"the VAE at '{run.vae}' is not the one that made {data.store.url}")
    if not run.gpus:
        torch.set_num_threads(run.cpus)
    rows = sorted(random.Random(seed).sample(range(len(data)), min(count, len(data))))
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        bucket = Bucket.parse(data.columns["bucket"][row].as_py())
        pixels = np.zeros((recipe.clips_per_call.get(bucket, 1), *frames.shape), dtype=np.uint8)
        pixels[0] = frames
        again = vae.encode(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3))[0, : vae.card.latent_channels]
        stored = data.read(np.array([row]))[0].astype(np.float32)
        yield Comparison(
            id=data.columns["id"][row].as_py(),
            key=data.columns["key"][row].as_py(),
            max_abs=float(np.abs(again.cpu().numpy() - stored).max()),
            cosine=_cosine(again.cpu().numpy(), stored),
            psnr_db=psnr_db(frames, decode_back(vae, data, row)),
        )


def _cosine(a: Array, b: Array) -> float:
    x, y = (values.astype(np.float64).ravel() for values in (a, b))
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y) or 1.0))

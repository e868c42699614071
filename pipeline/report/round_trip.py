"""The round trip of samples: source frames read again, latents decoded back, clips encoded once more and compared."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset
from pipeline.output.counts import Comparison
from pipeline.output.plan import read_plan
from pipeline.output.unit_metadata import unit_of
from pipeline.recipe import Run
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.sources.formats import items
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.checkpoint import local_checkpoint
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Frames
from pipeline.video.placement import crop_position
from pipeline.video.ranges import select_in_range
from stvae import load_vae
from stvae.vae import VAE

Array = npt.NDArray[np.float32]


def source_frames(run: Run, data: LatentDataset, rows: Sequence[int]) -> Iterator[Frames]:
    """Yield the frames uint8 [T,H,W,3] that each sample was encoded from, decoded again from its source."""
    with SourceFrameReader(run, data) as reader:
        for row in rows:
            yield reader.read(row)


class SourceFrameReader:
    """Decodes the source frames of samples again; a context manager, which ends the decoder processes.

    ``run.sources`` gives new locations of sources that have moved, as ``NAME=URL``.
    """

    def __init__(self, run: Run, data: LatentDataset) -> None:
        plan = read_plan(data.store)
        self._data = data
        self._units = {unit.name: unit for unit in plan.units}
        self._columns = plan.columns
        self._urls = {source.name: source.url for source in find_sources(run.sources)} if run.sources else {}
        self._decoders = Decoders(data.recipe, run)

    def read(self, row: int) -> Frames:
        """Return the frames uint8 [T,H,W,3] of the sample in this row of the index.

        Raises LatentmillError or Rejected if the source is gone, changed or damaged.
        """
        columns = ["shard", "ordinal", "window", "group", "uri"]
        sample = self._data.columns.select(columns).slice(row, 1).to_pylist()[0]
        unit = self._units.get(unit_of(sample["shard"]))
        if unit is None:
            raise IntegrityError(f"{self._data.store.url}: the plan has no unit for {sample['shard']!a}")
        for item in items(unit, self._url(unit.source), self._data.recipe, self._columns[unit.generation]):
            if item.ordinal == sample["ordinal"]:
                return self._decode(unit, item, sample).frames_THWC
        raise _source_changed(sample)

    def _url(self, source: str) -> str:
        """Return where a source is: the location given in ``run.sources``, or its name, if that is a URL."""
        if source in self._urls:
            return self._urls[source]
        if "://" not in source:
            raise ConfigError(
                f"the output does not record where source '{source}' is: give the same --source NAME=URL as for encoding"
            )
        return source

    def _decode(self, unit: Unit, item: Item, sample: dict[str, Any]) -> Clip:
        recipe, geometry = self._data.recipe, self._data.card.geometry
        crop = crop_position(recipe, unit.source, item.ordinal, item.key)
        select = partial(select_in_range, recipe=recipe, geometry=geometry, crop=crop)
        wanted = sample["window"], sample["group"] or ""
        with fetch(item, recipe) as file:
            for _, (_, outcome) in self._decoders.clips_of_ranges(file.fileno(), [item.range], [select]):
                if isinstance(outcome, Clip) and (outcome.window.index, outcome.window.group) == wanted:
                    return outcome
        raise _source_changed(sample)

    def __enter__(self) -> SourceFrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()


def _source_changed(sample: dict[str, Any]) -> ConfigError:
    return ConfigError(f"the source of this sample has changed since it was encoded: {sample['uri']}")


def require_sources(data: LatentDataset) -> None:
    """Raise ConfigError for imported latents, whose videos and cuts are not known."""
    if data.recipe.origin == "import":
        raise ConfigError(
            f"the latents of {data.store.url} were imported, so they cannot be compared with their videos"
        )


def decode_back(vae: VAE, data: LatentDataset, row: int) -> Frames:
    """Decode the stored mean of a sample: frames uint8 [T,H,W,3]."""
    stored_Cthw = data.read(np.array([row]))[0].astype(np.float32)
    return _decode(vae, stored_Cthw, data.columns["num_frames"][row].as_py())


def encode_again(vae: VAE, data: LatentDataset, row: int, frames_THWC: Frames) -> Array:
    """Encode the frames of a sample as the job did, in the recipe's micro-batch. Returns the mean [C,t,h,w]."""
    group = data.columns["group"][row].as_py() or ""
    bucket = dataclasses.replace(Bucket.parse(data.columns["bucket"][row].as_py()), group=group)
    pixels = np.zeros((data.recipe.clips_per_call.get(bucket, 1), *frames_THWC.shape), dtype=np.uint8)
    pixels[0] = frames_THWC
    moments = vae.encode(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3))[0]
    mean_Cthw: Array = moments[: vae.card.latent_channels].cpu().numpy()
    return mean_Cthw


def float16_psnr_db(vae: VAE, mean_Cthw: Array, frames_THWC: Frames) -> float:
    """Return the PSNR in decibels that a clip would have if its latent were stored as float16."""
    rounded_Cthw = mean_Cthw.astype(np.float16).astype(np.float32)
    return psnr_db(frames_THWC, _decode(vae, rounded_Cthw, len(frames_THWC)))


def _decode(vae: VAE, latent_Cthw: Array, num_frames: int) -> Frames:
    pixels = vae.decode(torch.from_numpy(latent_Cthw)[None], num_frames)
    frames: Frames = pixels[0].permute(1, 2, 3, 0).cpu().numpy()
    return frames


def psnr_db(a: Frames, b: Frames) -> float:
    """Return the peak signal-to-noise ratio of 8-bit frames in decibels; infinity if they are equal."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def compare_samples(run: Run, count: int, seed: int) -> Iterator[Comparison]:
    """Encode ``count`` random samples again, with the recipe's micro-batch and dtype, and compare them with the output.

    On the same kind of device the results differ only by the rounding of the stored dtype. Raises ConfigError if
    ``run.vae`` is not the output's VAE, or if a source has changed.
    """
    data = LatentDataset(run.output)
    require_sources(data)
    recipe = data.recipe
    vae = load_vae(
        local_checkpoint(run.vae),
        device="cuda" if run.encoder_gpus else "cpu",
        dtype=recipe.compute_dtype,
        unlisted=bool(data.card.assumed),
    )
    if vae.card.sha256 != recipe.vae:
        raise ConfigError(f"the VAE at '{run.vae}' is not the one that made {data.store.url}")
    if not run.encoder_gpus:
        torch.set_num_threads(run.encoder_cpus)
    rows = sorted(random.Random(seed).sample(range(len(data)), min(count, len(data))))
    for row, frames in zip(rows, source_frames(run, data, rows), strict=True):
        mean = encode_again(vae, data, row, frames)
        stored = data.read(np.array([row]))[0].astype(np.float32)
        difference = np.abs(mean - stored)
        yield Comparison(
            id=data.columns["id"][row].as_py(),
            key=data.columns["key"][row].as_py(),
            max_abs=float(difference.max()),
            mean_abs=float(difference.mean()),
            cosine=_cosine(mean, stored),
            psnr_db=psnr_db(frames, decode_back(vae, data, row)),
            float16_psnr_db=float16_psnr_db(vae, mean, frames) if recipe.dtype == "int8" else None,
        )


def _cosine(a: Array, b: Array) -> float:
    x, y = (values.astype(np.float64).ravel() for values in (a, b))
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y) or 1.0))

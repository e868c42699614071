"""Committed latents to batches for training a diffusion transformer.

Imports no video library, no diffusers and no Ray: reading a latent is one ranged read at an offset that the index
knows. The path of a batch: ``catalog`` (which samples there are) -> ``samples`` (which are wanted) -> ``epochs`` (their
order) -> ``reading`` (their bytes) -> ``assembly`` (tensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.errors import ConfigError
from pipeline.loader.batch import Batch, check_patch
from pipeline.loader.catalog import open_catalog, read_table
from pipeline.loader.epochs import BatchPolicy, Indices, Shapes, Tail
from pipeline.loader.iterator import Batches
from pipeline.loader.options import Options, check_captions, place_of
from pipeline.loader.range_cache import RangeCache
from pipeline.loader.samples import latents_before, select_samples
from pipeline.output.dataset import require_dataset
from pipeline.output.members import LATENT, member_named, members_of
from pipeline.output.serialization import unpack_latent
from pipeline.recipe import Bucket, Recipe
from pipeline.storage.store import Store
from stvae.card import Card
from stvae.normalisation import normalize

__all__ = ["Batch", "Batches", "LatentDataset"]


class LatentDataset:
    """The samples of an output, filtered. ``columns`` holds what is known of each without reading any latent.

    ``where``: see ``pipeline.loader.filters``. While the job that makes the output still runs, its committed units so far.
    ``join``: further columns by ``id``, as tables or URLs of Parquet files; ``where`` and ``captions`` may name them.
    ``frames``: windows of so many frames, one every ``frames_stride`` (as many, if not given) of a longer clip. They are
    exactly what encoding those frames alone gives, so they begin and end where the VAE's chunks do.
    ``cache``: a folder on local disk, shared by the processes of a node. The index and the plans of epochs are kept there
    in files that all of them map, and of a remote output ``cache_bytes`` of latents.
    """

    def __init__(
        self,
        url: str,
        where: str | None = None,
        *,
        join: Sequence[str | pa.Table] = (),
        frames: int | None = None,
        frames_stride: int | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.url = url
        self.store = Store(url)
        dataset = require_dataset(self.store)
        if cache_bytes and cache is None:
            raise ConfigError("cache_bytes needs a folder: give cache=")
        self.card: Card = dataset.card
        self.recipe: Recipe = dataset.recipe
        self.where = where
        folder = None if cache is None else Path(cache)
        catalog = open_catalog(self.store, folder)
        for n, extra in enumerate(join):
            name = extra if isinstance(extra, str) else f"table {n} of join="
            catalog = catalog.join(read_table(extra) if isinstance(extra, str) else extra, name)
        self.samples = select_samples(catalog, self.card, where, frames, frames_stride)
        self.range_cache: RangeCache | None = None
        if folder is not None and cache_bytes and self.store.folder is None:
            self.range_cache = RangeCache(folder / "ranges", self.store.url, cache_bytes)

    def __len__(self) -> int:
        return len(self.samples.rows)

    @cached_property
    def columns(self) -> pa.Table:
        """What is known of each sample, in the order that ``read`` counts them."""
        return self.samples.columns()

    def batches(
        self,
        batch_size: int | None = None,
        *,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail = "drop",
        shapes: Shapes = "bucket",
        patch: tuple[int, int, int] = (1, 1, 1),
        latent: Literal["mean", "sample"] = "mean",
        normalized: bool = True,
        conditioning: bool = False,
        captions: Mapping[str, float] | None = None,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        copy: bool = False,
        verify: bool = False,
        mapped: bool = False,
        threads: int = 2,
    ) -> Batches:
        """An endless supply of epochs; iterating goes through one, or through the rest of one after ``load_state_dict``.

        Every rank gets as many steps, in a step all get the same bucket, and no sample comes twice in an epoch.

        ``batch_size`` or ``tokens_per_batch`` (latent cells over ``patch``), of one rank. ``rank`` and ``world_size``: those
        of ``torch.distributed`` where it is initialised, else one rank.
        ``tail``: samples that fill no whole step are dropped, or the step filled with blanks (``batch["valid"]``) or
        repeated samples; ``dropped``, ``padded`` and ``repeated`` of the result count them.
        ``shapes``: one per batch, or mixed ones padded (``batch["mask"]``) or packed as patches (``batch["lengths"]``).
        ``latent``: the posterior's mean, or a sample of it that depends on seed, epoch and sample only.
        ``conditioning`` adds ``first_latents`` (and ``last_latents``): the mean of that frame encoded alone.
        ``captions``: text columns with weights, of which each sample takes one per epoch; ``""`` is no caption.
        ``dtype`` None: as stored. On the CPU, stored raw latents are lent until the next batch, unless ``copy``.
        ``verify``: check the crc32c of every tensor. ``mapped``: read through memory maps, for sets that fit in memory.
        ``threads`` that read and convert; cold disks want 4 to 8.
        """
        members = members_of(self.recipe) if conditioning else (LATENT,)
        if conditioning and members == (LATENT,):
            raise ConfigError(f"{self.store.url} has no conditioning frames; encode it with --conditioning first")
        if conditioning and (shapes == "pack" or self.samples.start_frames is not None):
            raise ConfigError("conditioning frames go with whole clips: not with frames= or shapes='pack'")
        self.check_latent(latent)
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        check_captions(captions, self.samples.table.schema)
        if shapes == "pack":
            check_patch(self.samples, patch)
        rank, world_size = place_of(rank, world_size)
        policy = BatchPolicy(
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            world_size=world_size,
            tail=tail,
            shapes=shapes,
        )
        options = Options(
            latent=latent,
            normalized=normalized,
            members=members,
            captions=captions,
            shapes=shapes,
            blanks=tail == "pad",
            patch=patch,
            dtype=dtype,
            device=torch.device(device),
            copy=copy,
            verify=verify,
        )
        return Batches(self, policy, options, seed=seed, rank=rank, mapped=mapped, threads=threads)

    def normalize(self, batch: Batch) -> Batch:
        """A batch of raw latents with normalised ones; ConfigError for a batch that is normalised already."""
        if batch["normalized"]:
            raise ConfigError("the latents of this batch are normalised already")
        if "lengths" in batch:
            raise ConfigError("packed latents are normalised before they are packed: give normalized=True")
        values = {
            name: normalize(value, self.card) if name.endswith("latents") else value
            for name, value in cast(dict[str, Any], batch).items()
        }
        return cast(Batch, values | {"normalized": True})

    def read(
        self, rows: Indices, latent: Literal["mean", "sample"] = "mean", member: str = LATENT.name
    ) -> list[npt.NDArray[Any]]:
        """Raw latents or moments of the given samples, as stored; only the mean's bytes where that is what is wanted.

        ``member``: name of the member, for example ``first`` for the clip's first frame encoded alone.
        """
        self.check_latent(latent)
        wanted = member_named(member, self.recipe)
        offset = wanted.column("tensor_offset")
        size_columns = ("latent_t", "latent_h", "latent_w") if wanted.is_clip else ("num_frames", "height", "width")
        found = self.samples.take(rows, ["shard", offset, *size_columns])
        sizes_thw: list[tuple[int, int, int]] = list(zip(*(found[name].tolist() for name in size_columns), strict=True))
        if not wanted.is_clip:
            sizes_thw = [wanted.latent_thw(Bucket(*clip), self.card.geometry) for clip in sizes_thw]
        channels = self.card.latent_channels * (2 if latent == "sample" else 1)
        sizes = [(channels, *size) for size in sizes_thw]
        by_shard: dict[str, list[int]] = {}
        for i, shard in enumerate(found["shard"]):
            by_shard.setdefault(shard, []).append(i)
        arrays: dict[int, npt.NDArray[Any]] = {}
        itemsize = 4 if self.recipe.dtype == "float32" else 2
        for shard, numbers in by_shard.items():
            ranges = [(int(found[offset][i]), int(np.prod(sizes[i])) * itemsize) for i in numbers]
            parts = self.store.read_ranges(shard, ranges)
            arrays |= {
                i: unpack_latent(part, self.recipe.dtype, sizes[i]) for i, part in zip(numbers, parts, strict=True)
            }
        return [self._window(arrays[i], row) for i, row in enumerate(rows.tolist())]

    def check_latent(self, latent: str) -> None:
        """ConfigError unless the output stores what ``latent`` needs."""
        if latent == "sample" and (self.recipe.store != "moments" or not self.card.has_moments):
            raise ConfigError("this output stores means only; a posterior cannot be sampled")

    def _window(self, stored_Cthw: npt.NDArray[Any], sample: int) -> npt.NDArray[Any]:
        if self.samples.start_frames is None:
            return stored_Cthw
        start = latents_before(self.card, int(self.samples.start_frames[sample]))
        return stored_Cthw[:, start : start + self.samples.buckets[self.samples.codes[sample]].latent_thw[0]]

"""Committed latents as batches for training a diffusion transformer.

A batch passes through these modules: ``catalog`` (all samples) -> ``samples`` (the selected ones) -> ``schedule`` (their
order) -> ``readers`` (their bytes) -> ``collation`` (tensors). To read a latent takes one ranged read at an offset from the
index, so nothing here needs a video library, diffusers or Ray.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader.agreement import adopt_version, announce_schedule
from pipeline.loader.collation.batch import Batch
from pipeline.loader.collation.collator import Collator
from pipeline.loader.collation.damage import has_negative_scales
from pipeline.loader.iterator import Batches
from pipeline.loader.options import BatchOptions, Latent, OptionsAsKeywords, check_latent
from pipeline.loader.range_cache import RangeCache
from pipeline.loader.ranks import resolve_rank
from pipeline.loader.readers import open_reader
from pipeline.loader.samples import Where, latents_before
from pipeline.loader.schedule.keys import Indices
from pipeline.loader.state import LoaderState
from pipeline.loader.text.captions import DEFAULT_CAPTIONS
from pipeline.loader.text.layer import TextLayer, check_text
from pipeline.loader.text.open_layer import open_layer
from pipeline.loader.workers.shared_samples import SampleSource
from pipeline.output.dataset import require_dataset
from pipeline.output.edits.version import OutputVersion, find_version
from pipeline.output.members import LATENT, member_named
from pipeline.output.purges.deleted_shards import read_shard
from pipeline.output.serialization import ITEM_BYTES, dequantize, unpack_latent
from pipeline.recipe import Recipe
from pipeline.storage.drivers.waits import WAITS
from pipeline.storage.store import Store
from stvae.card import Card
from stvae.normalization import normalize


class LatentDataset:
    """The samples of an output that pass a filter.

    If the job that makes the output is still running, these are the samples of the units that it has committed so far.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        where: Where | Mapping[int, Where] = None,
        *,
        join: Sequence[str | pa.Table] = (),
        frames: int | None = None,
        frames_stride: int | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        text: str | None = None,
        version: str | None = None,
    ) -> None:
        """Open an output.

        url: a local folder or a URL, which may be signed by a query that holds for all files.
        where: a filter of samples, as text (see ``pipeline.loader.filters``) or as an Arrow expression. A filter that
        changes between epochs has one for each epoch where another begins: ``{0: "score > 5", 3: "score > 6"}``. The
        dataset then has the samples of all epochs, and each epoch trains on its own.
        join: tables, or URLs of Parquet files, with further columns by ``id``. ``where`` and ``captions`` may name them.
        frames: cut clips into windows of this number of frames, which start every ``frames_stride`` frames (default:
        ``frames``). A window equals what encoding its frames alone gives, so it must consist of whole chunks of the VAE.
        cache: a folder on local disk, shared by the processes of a node, for the index and the schedules of epochs.
        cache_bytes: keep up to this many bytes of a remote output's latents in the cache.
        text: name of a text layer, whose embeddings the batches hold.
        version: a tag, or a version such as ``index=3,edits=1``, which states name; default: the newest one.
        storage_options: arguments of fsspec's client, such as ``{"headers": {"Authorization": ...}}`` for a web server.
        Raises ConfigError, or WhereError for a wrong filter.
        """
        WAITS.warns = True
        self.store = Store(os.fspath(url), storage_options=storage_options)
        self.url = self.store.url if "://" in os.fspath(url) else os.fspath(url)
        dataset = require_dataset(self.store)
        if cache_bytes and cache is None:
            raise ConfigError("cache_bytes needs a folder; give cache= too")
        self.card: Card = dataset.card
        self.recipe: Recipe = dataset.recipe
        folder = None if cache is None else Path(cache)
        found = find_version(self.store, version)
        self.version = OutputVersion.from_json(adopt_version(self.store.url, version, found.to_json()))
        self.samples = SampleSource(
            store=self.store,
            version=self.version,
            card=self.card,
            where=where,
            join=list(join),
            frames=frames,
            frames_stride=frames_stride,
            cache=folder,
        ).open()
        self.text: TextLayer | None = None
        if text is not None:
            self.text = open_layer(self.store, text, self.samples.table["id"])
        self.range_cache: RangeCache | None = None
        if folder is not None and cache_bytes and self.store.folder is None:
            self.range_cache = RangeCache(folder / "ranges", self.store.url, cache_bytes)

    def __len__(self) -> int:
        return len(self.samples.rows)

    def __getstate__(self) -> dict[str, Any]:
        """The state for a worker process, which maps the samples (``workers/shared_samples.py``)."""
        return {name: value for name, value in self.__dict__.items() if name != "columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WAITS.warns = True
        self.__dict__.update(state)

    @cached_property
    def columns(self) -> pa.Table:
        """All columns of the index, one row per sample, in the order in which ``read`` numbers them. Reads no latents."""
        return self.samples.columns()

    @OptionsAsKeywords(BatchOptions)
    def batches(self, options: BatchOptions) -> Batches:
        """Return the batches of one rank. Iterating over them goes through one epoch; iterate again for the next one.

        In an epoch every rank has the same number of steps, all ranks of a step have the same bucket, and no sample comes
        twice (unless ``tail="repeat"``). The keywords are the fields of ``BatchOptions``, which documents them.
        Raises ConfigError if options exclude each other or the output does not have what they ask for.
        """
        rank, world_size = resolve_rank(options)
        state = self.position(options, world_size)
        if rank == 0 and (note := state.describe_untrained()):
            warnings.warn(note, stacklevel=3)
        check_ranks = announce_schedule(state.describe_schedule()) if options.rank is None else lambda: None
        return self.batches_from(state, options, rank, world_size, check_ranks)

    def check(self, options: BatchOptions) -> None:
        """Raise ConfigError if the output does not have what the options ask for."""
        options.check(self.samples, self.recipe, self.card)
        if self.text is not None:
            check_text(self.text, self.samples, list(options.captions or DEFAULT_CAPTIONS))
        elif options.text_dropout:
            raise ConfigError("text_dropout drops embeddings of captions: open the output with text=LAYER")

    def collator(self, options: BatchOptions) -> Collator:
        """Return what makes the batches of this output."""
        is_remote = self.store.folder is None
        return Collator(self.samples, self.card, self.recipe, options, remote=is_remote, text=self.text)

    def position(self, options: BatchOptions, world_size: int) -> LoaderState:
        """Return the position of a training run before its first batch. ConfigError if the options cannot be met."""
        self.check(options)
        return LoaderState(
            self.samples,
            options.policy(world_size),
            options.patch,
            options.seed,
            url=self.url,
            dataset_version=self.version.name,
        )

    def batches_from(
        self,
        state: LoaderState,
        options: BatchOptions,
        rank: int,
        world_size: int,
        check_ranks: Callable[[], None] = lambda: None,
    ) -> Batches:
        """Return the batches of one rank that begin at a position, which they move."""
        return Batches(
            state,
            self.collator(options),
            partial(open_reader, self.store, mapped=options.mapped, cache=self.range_cache),
            rank=rank,
            world_size=world_size,
            threads=options.threads,
            loop=options.loop,
            check_ranks=check_ranks,
        )

    def normalize(self, batch: Batch) -> Batch:
        """Return a copy of a batch of raw latents with normalized latents. Raises ConfigError if they are normalized."""
        if batch["normalized"]:
            raise ConfigError("the latents of this batch are already normalized")
        if "lengths" in batch:
            raise ConfigError("packed latents cannot be normalized; use batches(normalized=True)")
        values = {
            name: normalize(value, self.card) if name.endswith("latents") else value
            for name, value in cast(dict[str, Any], batch).items()
        }
        return cast(Batch, values | {"normalized": True})

    def read(self, rows: Indices, latent: Latent = "mean", member: str = LATENT.name) -> list[npt.NDArray[Any]]:
        """Read the raw latents [C,t,h,w] of some samples (``latent="mean"``), or their moments [2C,t,h,w] (``"sample"``).

        They have the stored type; bfloat16 and int8 come as float32. IntegrityError for scales of int8 that cannot be right;
        nothing else is checked.
        rows: int64 [n], numbers of samples. member: for example ``first``, the first frame encoded alone.
        """
        check_latent(latent, self.recipe, self.card)
        wanted = member_named(member, self.recipe)
        size_columns = ("latent_t", "latent_h", "latent_w") if wanted.is_clip else ("num_frames", "height", "width")
        columns = self.samples.take(rows, ["shard", *size_columns])
        sizes_thw: list[tuple[int, int, int]] = list(
            zip(*(columns[name].tolist() for name in size_columns), strict=True)
        )
        if not wanted.is_clip:
            sizes_thw = [wanted.latent_thw(Bucket(*clip), self.card.geometry) for clip in sizes_thw]
        channels = self.card.latent_channels * (2 if latent == "sample" else 1)
        sizes = [(channels, *size) for size in sizes_thw]
        shards = list(columns["shard"])
        arrays = self._read_arrays(shards, self._offsets(rows, wanted.column), self.recipe.dtype, sizes)
        if self.recipe.dtype == "int8":
            scale_sizes = [(c, t, 1, 1) for c, t, *_ in sizes]
            scales = self._read_arrays(shards, self._offsets(rows, wanted.scale_column), "float32", scale_sizes)
            self._check_scales(rows, scales)
            arrays = [dequantize(*pair) for pair in zip(arrays, scales, strict=True)]
        return [self._window(array, row) for array, row in zip(arrays, rows.tolist(), strict=True)]

    def _offsets(self, rows: Indices, column: Callable[[str], str]) -> list[int]:
        """Return where the arrays of some samples begin in their shards."""
        name = column("tensor_offset")
        offsets: list[int] = self.samples.take(rows, [name])[name].tolist()
        return offsets

    def _read_arrays(
        self, shards: list[str], offsets: list[int], dtype: str, sizes: Sequence[tuple[int, ...]]
    ) -> list[npt.NDArray[Any]]:
        """Read one array for each given shard, offset and size."""
        by_shard: dict[str, list[int]] = {}
        for i, shard in enumerate(shards):
            by_shard.setdefault(shard, []).append(i)
        arrays: dict[int, npt.NDArray[Any]] = {}
        for shard, numbers in by_shard.items():
            ranges = [(offsets[i], int(np.prod(sizes[i])) * ITEM_BYTES[dtype]) for i in numbers]
            parts = read_shard(self.store, shard, ranges)
            arrays |= {i: unpack_latent(part, dtype, sizes[i]) for i, part in zip(numbers, parts, strict=True)}
        return [arrays[i] for i in range(len(shards))]

    def _check_scales(self, rows: Indices, scales: Sequence[npt.NDArray[np.float32]]) -> None:
        """Raise IntegrityError if a sample has scales that are not finite, or negative."""
        for row, scales_Ct11 in zip(rows, scales, strict=True):
            if not np.isfinite(scales_Ct11).all() or has_negative_scales(scales_Ct11):
                found = self.samples.take(np.array([row]), ["shard", "id"])
                raise IntegrityError(
                    f"{found['shard'][0]}: the scales of {found['id'][0]} are damaged: some are negative or not finite; run "
                    "jobs/verify_dataset.py to find all damaged samples"
                )

    def _window(self, stored_Cthw: npt.NDArray[Any], sample: int) -> npt.NDArray[Any]:
        """Cut the latent frames of a sample's window out of its clip."""
        if self.samples.start_frames is None:
            return stored_Cthw
        start = latents_before(self.card, int(self.samples.start_frames[sample]))
        return stored_Cthw[:, start : start + self.samples.buckets[self.samples.codes[sample]].latent_thw[0]]

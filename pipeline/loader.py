"""Committed latents to batches for training a diffusion transformer.

Imports no video library, no diffusers and no Ray: reading a latent is one ranged read at an offset that the index
knows. One batch has one bucket, so one latent shape and one pixel size.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.dataset import read_dataset
from pipeline.errors import ConfigError
from pipeline.index import newest_index
from pipeline.recipe import Recipe
from pipeline.store import Store
from pipeline.tables import read_parquet
from pipeline.where import parse_where
from stvae.card import Card
from stvae.normalisation import normalize

STATE_VERSION = 1
STEPS_AHEAD = 2
LOGVAR_RANGE = (-30.0, 20.0)
"""To which diffusers clamps log-variances before sampling (models/autoencoders/vae.py)."""

Indices = npt.NDArray[np.int64]
Batch = dict[str, Any]
"""``latents`` float32 [B,C,t,h,w]; ``normalized``, whether they are; ``fps`` float32 [B], NaN for images; ``height``,
``width`` (pixels) and ``num_frames`` int64 [B]; ``caption``, ``id``, ``key`` lists of B."""


class LatentDataset:
    """The samples of an output, filtered. ``columns`` holds what is known of each without reading any latent.

    ``where``: see ``pipeline.where``. While the job that makes the output still runs, its committed units so far.
    """

    def __init__(self, url: str, where: str | None = None) -> None:
        self.store = Store(url)
        try:
            dataset = read_dataset(self.store)
        except FileNotFoundError:
            raise ConfigError(f"{self.store.url} has no dataset.json: is it the output of an encode job?") from None
        self.card: Card = dataset.card
        self.recipe: Recipe = dataset.recipe
        table = _read_samples(self.store)
        if where is not None:
            table = table.filter(parse_where(where, table.schema))
        self.where = where
        self.columns: pa.Table = table

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        latent: Literal["mean", "sample"] = "mean",
        normalized: bool = True,
        conditioning: bool = False,
    ) -> Batches:
        """An endless supply of epochs; iterating goes through one, or through the rest of one after ``load_state_dict``.

        Every rank gets as many steps, in a step all get the same bucket, and no sample comes twice in an epoch.
        ``latent``: the posterior's mean, or a sample of it that depends on seed, epoch and sample only.
        ``conditioning`` adds ``first_latents`` (and ``last_latents``): the mean of that frame encoded alone.
        """
        if conditioning and not self.recipe.conditioning_frames:
            raise ConfigError(f"{self.store.url} has no conditioning frames; encode it with --conditioning first")
        return Batches(self, batch_size, seed, rank, world_size, latent, normalized, conditioning)

    def normalize(self, batch: Batch) -> Batch:
        """A batch of raw latents with normalised ones; ConfigError for a batch that is normalised already."""
        if batch["normalized"]:
            raise ConfigError("the latents of this batch are normalised already")
        raw = {name: value for name, value in batch.items() if name.endswith("latents")}
        return batch | {name: normalize(value, self.card) for name, value in raw.items()} | {"normalized": True}

    def read(
        self, rows: Indices, latent: Literal["mean", "sample"] = "mean", frame: str | None = None
    ) -> list[npt.NDArray[Any]]:
        """Raw latents or moments of the given rows, as stored; only the mean's bytes where that is what is wanted.

        ``frame``: instead of the clip its frame encoded alone, ``first`` or ``last``.
        """
        place = ["tensor_offset", "tensor_nbytes"]
        names = ["shard", "dtype", "kind", "latent_c", "latent_t", "latent_h", "latent_w"]
        stored = place if frame is None else [f"{frame}_{name}" for name in place]
        table = self.columns.select([*stored, *names]).rename_columns([*place, *names]).take(pa.array(rows)).to_pylist()
        by_shard: dict[str, list[int]] = {}
        for i, row in enumerate(table):
            if frame is not None:
                row["latent_t"] = 1
            if row["kind"] == "moments":
                row["parts"] = 2 if latent == "sample" else 1
                row["tensor_nbytes"] = row["tensor_nbytes"] // 2 * row["parts"]
            elif latent == "sample":
                raise ConfigError("this output stores means only; a posterior cannot be sampled")
            by_shard.setdefault(row["shard"], []).append(i)
        found: dict[int, npt.NDArray[Any]] = {}
        for shard, members in by_shard.items():
            ranges = [(table[i]["tensor_offset"], table[i]["tensor_nbytes"]) for i in members]
            parts = self.store.read_ranges(shard, ranges)
            found |= {i: _to_array(part, table[i]) for i, part in zip(members, parts, strict=True)}
        return [found[i] for i in range(len(rows))]


class Batches:
    """One rank's batches. ``state_dict`` after any batch, loaded into an equal object, goes on with the next one."""

    def __init__(
        self,
        data: LatentDataset,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        latent: Literal["mean", "sample"],
        normalized: bool,
        conditioning: bool,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.latent: Literal["mean", "sample"] = latent
        self.normalized = normalized
        self.conditioning = list(data.recipe.conditioning_frames) if conditioning else []
        self.epoch = 0
        self.step = 0
        self._buckets = np.asarray(data.columns["bucket"].to_numpy(zero_copy_only=False), dtype=np.str_)
        self._ids: list[str] = data.columns["id"].to_pylist()
        self.plan_hash = self._plan_hash()

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._plan())

    @property
    def dropped(self) -> int:
        """Samples of an epoch that fill no whole step of their bucket; others are dropped in every epoch."""
        return len(self.data) - len(self) * self.batch_size * self.world_size

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch; afterwards the next epoch is due."""
        steps = self._plan()
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        ahead: deque[Future[Batch]] = deque()
        wanted = iter(steps[self.step :, mine])
        with ThreadPoolExecutor(STEPS_AHEAD) as pool:
            for rows in wanted:
                ahead.append(pool.submit(self._batch, rows, self.epoch))
                if len(ahead) > STEPS_AHEAD:
                    self.step += 1
                    yield ahead.popleft().result()
            while ahead:
                self.step += 1
                yield ahead.popleft().result()
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is; counts batches that were handed out."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
            "plan_hash": self.plan_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. ConfigError if the samples, seed or global batch size are not the same."""
        for name in ("version", "seed", "plan_hash"):
            ours = {"version": STATE_VERSION, "seed": self.seed, "plan_hash": self.plan_hash}[name]
            if state[name] != ours:
                raise ConfigError(
                    f"this state is of another plan ({name} {state[name]}, here {ours}): resume with the same output, "
                    "filter, seed and batch_size x world_size"
                )
        self.epoch, self.step = state["epoch"], state["step"]

    def _plan(self) -> Indices:
        """Rows of every step of the epoch, ``[steps, world_size * batch_size]``: a pure function of seed and epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        size = self.batch_size * self.world_size
        steps = []
        for bucket in np.unique(self._buckets):
            rows = rng.permutation(np.flatnonzero(self._buckets == bucket))
            steps.append(rows[: len(rows) // size * size].reshape(-1, size))
        if not steps:
            return np.zeros((0, size), dtype=np.int64)
        plan = np.concatenate(steps)
        shuffled: Indices = plan[rng.permutation(len(plan))]
        return shuffled

    def _plan_hash(self) -> str:
        text = json.dumps([self.seed, self.batch_size * self.world_size, self.data.where])
        return hashlib.sha256("\n".join([text, *self._ids]).encode()).hexdigest()[:16]

    def _batch(self, rows: Indices, epoch: int) -> Batch:
        stored = np.stack(self.data.read(rows, self.latent))
        latents = torch.from_numpy(stored).float()
        if self.latent == "sample":
            latents = self._sample(latents, [self._ids[row] for row in rows], epoch)
        tensors = {"latents": latents}
        for frame in self.conditioning:
            tensors[f"{frame}_latents"] = torch.from_numpy(np.stack(self.data.read(rows, frame=frame))).float()
        if self.normalized:
            tensors = {name: normalize(raw, self.data.card) for name, raw in tensors.items()}
        names = ["fps", "height", "width", "num_frames", "caption", "id", "key"]
        columns = self.data.columns.select(names).take(pa.array(rows)).to_pydict()
        return {
            **tensors,
            "normalized": self.normalized,
            "fps": torch.tensor([float("nan") if fps is None else fps for fps in columns["fps"]]),
            **{name: torch.tensor(columns[name]) for name in ("height", "width", "num_frames")},
            **{name: columns[name] for name in ("caption", "id", "key")},
        }

    def _sample(self, moments_BCthw: Tensor, ids: list[str], epoch: int) -> Tensor:
        mean, logvar = moments_BCthw.chunk(2, dim=1)
        noise = []
        for name in ids:
            digest = hashlib.sha256(f"{self.seed}/{epoch}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
            noise.append(torch.randn(mean.shape[1:], generator=generator))
        return mean + torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE)) * torch.stack(noise)


def _read_samples(store: Store) -> pa.Table:
    """Sample rows from the newest index, or from the sidecars where there is no index yet."""
    index = newest_index(store)
    paths = (
        index.samples if index else sorted(path for path in store.list_files("metadata") if path.endswith(".parquet"))
    )
    if not paths:
        raise ConfigError(f"{store.url} has no committed samples")
    tables = [read_parquet(store.get(path)).replace_schema_metadata(None) for path in paths]
    table = pa.concat_tables(tables, promote_options="default")
    return table.filter(pa.compute.field("shard").is_valid())


def _to_array(data: bytes, row: dict[str, Any]) -> npt.NDArray[Any]:
    shape = (row["latent_c"] * row.get("parts", 1), row["latent_t"], row["latent_h"], row["latent_w"])
    if row["dtype"] == "bfloat16":
        bits = np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype=row["dtype"]).reshape(shape)

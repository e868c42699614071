"""Committed outputs of random latents, for the tests and benches of the loader. They need no video and no VAE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.bucket import Bucket
from pipeline.output.dataset import open_dataset
from pipeline.output.index_builder import build_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.members import members_of
from pipeline.output.shard_writer import ShardWriter
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.units import Plan, Unit
from pipeline.storage.store import Store
from stvae import read_card
from stvae.card import Card
from tests.support.golden import TINY
from tests.support.plain_clips import clip_of, plain_facts


def write_latents(
    folder: Path,
    buckets: Sequence[Bucket],
    *,
    samples_per_shard: int = 8,
    store: str = "moments",
    dtype: str = "float16",
    conditioning: str = "none",
    index: bool = True,
    first_key: int = 0,
    distinct_captions: int | None = None,
) -> Path:
    """Write an output with one sample per given bucket. Sample ``n`` has key ``n`` and latents of seed ``n``.

    first_key: number to add to every key, which gives the samples of several outputs different ids.
    distinct_captions: number of captions after which they repeat; by default, every sample has one of its own.
    """
    card = read_card(str(TINY))
    recipe = Recipe(
        vae=card.sha256,
        buckets=tuple(sorted(set(buckets), key=str)),
        micro_batch=(1,) * len(set(buckets)),
        compute_dtype="float32",
        store=store,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        conditioning=conditioning,  # type: ignore[arg-type]
    )
    output = Store(str(folder))
    open_dataset(output, recipe, card, dict)
    columns = pa.schema([("meta_score", pa.float64())])
    units = []
    for start in range(0, len(buckets), samples_per_shard):
        unit = Unit(name=f"u{start:05d}", source="numbers", format="manifest", generation=0, start=start, stop=None)
        units.append(unit)
        with output.scratch() as scratch, ShardWriter(scratch, unit, recipe, card, columns) as writer:
            for n in range(start, min(start + samples_per_shard, len(buckets))):
                item = Item(
                    ordinal=n,
                    key=f"{first_key + n}",
                    uri=f"{n}.mp4",
                    caption=f"number {n % (distinct_captions or len(buckets))}",
                    meta={"meta_score": n / 2},
                )
                latents = {"latent": latent(n, buckets[n], 8 if store == "moments" else 4)}
                for member in members_of(recipe)[1:]:
                    latents[member.name] = latent(n + 1000, member.bucket(buckets[n]), 8)
                writer.add_sample(
                    item,
                    plain_facts(buckets[n].num_frames, buckets[n].height, buckets[n].width),
                    clip_of(buckets[n]),
                    latents,
                    "whole",
                )
            assert writer.commit(output, {}) == "committed"
    if index:
        plan = Plan(units=units, columns=[columns])
        build_index(output, plan, clip_rows(plan, recipe))
    return folder


@cache
def _card() -> Card:
    return read_card(str(TINY))


def latent(number: int, bucket: Bucket, channels: int) -> np.ndarray:
    """Return the latents or moments that ``write_latents`` stores for a sample, float32 before rounding."""
    size = _card().geometry.latent_size((bucket.num_frames, bucket.height, bucket.width))
    return np.random.default_rng(number).standard_normal((channels, *size), dtype=np.float32)

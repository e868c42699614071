"""Outputs with captions whose latents are random, as a running job leaves them: they can grow. No video and no VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.bucket import Bucket
from pipeline.output.dataset import open_dataset
from pipeline.output.index_builder import complete_index
from pipeline.output.index_parts import clip_rows
from pipeline.output.plan import freeze_generation, read_plan
from pipeline.output.shard_writer import ShardWriter
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.store import Store
from stvae import read_card
from stvae.card import Card
from tests.support.golden import TINY
from tests.support.plain_clips import clip_of, plain_facts

BUCKET, VIDEO_BUCKET = Bucket(1, 16, 16), Bucket(17, 16, 24)
RECIPE = Recipe(
    vae=read_card(str(TINY)).sha256, buckets=(BUCKET, VIDEO_BUCKET), micro_batch=(1, 1), compute_dtype="float32"
)
COLUMNS = pa.schema([("meta_long_caption", pa.string()), ("meta_score", pa.float64()), ("meta_motion", pa.float64())])


@dataclasses.dataclass(frozen=True, slots=True)
class Captions:
    """The captions of one sample."""

    caption: str | Sequence[str] | None
    long: str | None = None
    score: float | None = None
    motion: float | None = None
    bucket: Bucket = BUCKET


def recipe_of(vae: Path, buckets: Sequence[Bucket]) -> Recipe:
    """A recipe with the VAE in a folder, and these buckets."""
    return dataclasses.replace(
        RECIPE, vae=read_card(str(vae)).sha256, buckets=tuple(buckets), micro_batch=(1,) * len(buckets)
    )


def add_unit(
    folder: Path, captions: Sequence[Captions], recipe: Recipe = RECIPE, vae: Path = TINY, *, first_key: int = 0
) -> None:
    """Add a generation with one unit to an output, and commit the unit. There is an index only after ``finish``.

    first_key: number to add to every key, which gives the samples of several outputs different ids.
    """
    store, card = Store(str(folder)), read_card(str(vae))
    open_dataset(store, recipe, card, dict)
    plan = read_plan(store)
    start = sum(unit.stop or 0 for unit in plan.units[-1:])
    unit = Unit(
        name=f"u{start:06d}",
        source="numbers",
        format="manifest",
        generation=len(plan.columns),
        start=start,
        stop=start + len(captions),
    )
    freeze_generation(store, [unit], COLUMNS, unit.generation)
    with store.scratch() as scratch, ShardWriter(scratch, unit, recipe, card, COLUMNS) as writer:
        for n, each in enumerate(captions, start):
            texts = [each.caption] if each.caption is None or isinstance(each.caption, str) else list(each.caption)
            meta: dict[str, Any] = {
                "meta_long_caption": each.long,
                "meta_score": each.score,
                "meta_motion": each.motion,
            }
            item = Item(
                ordinal=n,
                key=str(first_key + n),
                uri=f"{n}.png",
                caption=texts[0],
                captions=texts if len(texts) > 1 else None,
                meta=meta,
            )
            bucket = each.bucket
            facts = plain_facts(bucket.num_frames, bucket.height, bucket.width)
            writer.add_sample(item, facts, clip_of(bucket), {"latent": _moments(n, bucket, card)}, "whole")
        assert writer.commit(store, {}) == "committed"


def finish(folder: Path, recipe: Recipe = RECIPE) -> None:
    """Build the index, as the job does at its end."""
    store = Store(str(folder))
    plan = read_plan(store)
    complete_index(store, plan, clip_rows(plan, recipe))


def _moments(number: int, bucket: Bucket, card: Card) -> np.ndarray:
    size = card.geometry.latent_size((bucket.num_frames, bucket.height, bucket.width))
    return np.random.default_rng(number).standard_normal((2 * card.latent_channels, *size), dtype=np.float32)

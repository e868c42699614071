"""Clips and bytes of each unit: counted if every item was sampled, else of simulated units."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from pipeline.dry_run.item_estimate import ClipSize, ItemEstimate
from pipeline.dry_run.sampling import SEED, FormatSample, Sample

MAX_SIMULATED_UNITS = 400

UnitContents = tuple[list[Counter[ClipSize]], list[int]]
"""Clips by size, and bytes of the shard's members; one entry per unit in each list."""


def count_units(sample: Sample[ItemEstimate]) -> UnitContents:
    """Return the contents of all units of a complete sample."""
    clips, sizes = [], []
    for sampled in sample.sampled_units:
        clips.append(sum((item.clips for item in sampled.observations), Counter[ClipSize]()))
        sizes.append(sum(item.counts.size_bytes for item in sampled.observations))
    return clips, sizes


def simulate_units(sample: Sample[ItemEstimate]) -> UnitContents:
    """Return the contents of simulated units, of the sizes that the dataset's units have, with items from the sample."""
    generator = np.random.default_rng(SEED)
    clips: list[Counter[ClipSize]] = []
    sizes: list[int] = []
    num_units = sum(len(part.units) for part in sample.formats)
    for part in sample.formats:
        count = max(1, round(MAX_SIMULATED_UNITS * len(part.units) / max(num_units, MAX_SIMULATED_UNITS)))
        part_clips, part_sizes = _simulate_format(part, count, generator)
        clips += part_clips
        sizes += part_sizes
    return clips, sizes


def _simulate_format(part: FormatSample[ItemEstimate], count: int, generator: np.random.Generator) -> UnitContents:
    """Simulate ``count`` units of one source format.

    Shapes: ``table`` [sampled items, clip sizes + 1], the last column bytes; ``shares`` [sampled items].
    Invariant: ``shares`` add up to 1; an item of a unit that was sampled thinly weighs more.
    Example: a unit of 100 items draws each of 4 equally weighted items about 25 times, so its row is near 25 * the sum of
    the table's rows.
    """
    items = [item for sampled in part.sampled_units for item in sampled.observations]
    if not items:
        return [Counter()] * len(part.units), [0] * len(part.units)
    weights = [
        sampled.num_items / len(sampled.observations) for sampled in part.sampled_units for _ in sampled.observations
    ]
    clip_sizes = sorted({clip_size for item in items for clip_size in item.clips})
    table = np.array([[item.clips[clip_size] for clip_size in clip_sizes] + [item.counts.size_bytes] for item in items])
    shares: npt.NDArray[np.float64] = np.array(weights) / sum(weights)
    clips, sizes = [], []
    for num_items in generator.choice(part.unit_sizes, count, replace=count > len(part.units)):
        row = generator.multinomial(max(1, round(num_items)), shares) @ table
        clips.append(Counter({size: int(n) for size, n in zip(clip_sizes, row[:-1], strict=True) if n}))
        sizes.append(int(row[-1]))
    return clips, sizes

"""Estimate of a job without running it: headers are probed and windows planned; nothing is decoded or written.

It misses what only decoding or encoding shows: damage inside a video, frozen pictures, latents out of range.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.bucket import Bucket, numbers_needed, one_per_bucket
from pipeline.dry_run.item_estimate import ClipSize, ItemEstimate, estimate_item
from pipeline.dry_run.sampling import EstimatedTotal, FormatSample, Sample, SampledUnit, choose_units, draw_items
from pipeline.dry_run.unit_contents import count_units, simulate_units
from pipeline.encode.prefetch import decode_in_order
from pipeline.environment import check_device
from pipeline.errors import ConfigError
from pipeline.executor.resources.automatic import resolve_resources
from pipeline.output.dataset import check_recipe, recorded_environment, resolve_compute_dtype
from pipeline.output.members import check_members
from pipeline.output.plan import committed_units, preview_plan
from pipeline.output.rows import RowBuilder
from pipeline.output.tar_writer import archive_bytes
from pipeline.progress.formatting import number
from pipeline.recipe import Recipe, Run
from pipeline.setting import available_cpus
from pipeline.sources.discovery import find_sources
from pipeline.sources.item import Item
from pipeline.sources.units import Plan, Source, Unit
from pipeline.storage.store import Store
from pipeline.video.decoders import Decoders
from stvae.card import Card

EncoderSpeeds = Mapping[Bucket, float | None]
"""Clips per second of one encoder; None if a micro-batch does not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Expected outcome of the units that are not committed yet."""

    output: str
    recipe: Recipe
    run: Run
    sources: list[Source]
    num_units: int
    """Number of planned units, without units that retry rejects."""
    num_left: int
    """Number of these that are not committed."""
    sample: Sample[ItemEstimate]
    unit_clips: list[Counter[ClipSize]]
    """Clips of each unit that is left; of simulated units if not every item was sampled."""
    unit_bytes: list[int]
    """Bytes of the members of these units' shards."""

    def total(self, measure: Callable[[ItemEstimate], float]) -> EstimatedTotal:
        """Estimate the sum of a measure over all items that are left."""
        return self.sample.total(measure)

    @property
    def used_buckets(self) -> list[Bucket]:
        """The recipe's buckets that have clips, in the recipe's order."""
        used = {bucket for item in self.sample.observations for _, bucket in item.clips}
        return [bucket for bucket in self.recipe.buckets if bucket in used]

    @property
    def num_shards(self) -> int:
        """Number of units that are left and have clips."""
        return round(self.num_left * len(self.shard_bytes) / max(1, len(self.unit_bytes)))

    @property
    def shard_bytes(self) -> list[int]:
        """Sizes of the shards of those units in ``unit_bytes`` that have clips."""
        return [archive_bytes(size) for size in self.unit_bytes if size]

    @property
    def size_bytes(self) -> EstimatedTotal:
        """Size of all shards: their members, and the end of each archive."""
        members = self.total(lambda item: item.counts.size_bytes)
        ends = (sum(self.shard_bytes) - sum(self.unit_bytes)) / max(1, len(self.unit_bytes)) * self.num_left
        return EstimatedTotal(value=members.value + ends, low=members.low + ends, high=members.high + ends)

    @property
    def filled(self) -> float:
        """Share of the slots of micro-batches that hold a clip: in each unit, the last one of a size is padded."""
        clips, slots = self._clips_and_slots()
        return sum(clips.values()) / max(1, sum(slots.values()))

    def encoder_s(self, speeds: EncoderSpeeds) -> float | None:
        """Return the time of all encoders, padding included; None if a micro-batch does not fit in memory.

        Assumes that the time of a shortened clip is proportional to its frames.
        """
        clips, slots = self._clips_and_slots()
        seconds = 0.0
        for (size, bucket), count in clips.items():
            speed = speeds.get(bucket)
            if not speed:
                return None
            padding = slots[size, bucket] / count
            shortening = size.num_frames / bucket.num_frames
            seconds += self.total(_count_clips((size, bucket))).value * padding * shortening / speed
        return seconds

    def _clips_and_slots(self) -> tuple[Counter[ClipSize], Counter[ClipSize]]:
        clips: Counter[ClipSize] = Counter()
        slots: Counter[ClipSize] = Counter()
        for unit in self.unit_clips:
            for clip_size, count in unit.items():
                micro_batch = self.recipe.clips_per_call[clip_size[1]]
                clips[clip_size] += count
                slots[clip_size] += -(-count // micro_batch) * micro_batch
        return clips, slots


def parse_speeds(recipe: Recipe, clips_per_s: Sequence[float]) -> EncoderSpeeds:
    """Return the speeds of ``--clips-per-s``: one number for all buckets, one for each group, or one for each bucket."""
    speeds = one_per_bucket(clips_per_s, recipe.buckets)
    if speeds is None or min(speeds) <= 0:
        raise ConfigError(
            f"--clips-per-s needs one number above 0, {numbers_needed(recipe.buckets)}, "
            f"got {', '.join(f'{speed:g}' for speed in clips_per_s)}"
        )
    return dict(zip(recipe.buckets, speeds, strict=True))


def estimate(recipe: Recipe, run: Run, card: Card, budget: int | None, say: Callable[[str], None]) -> Estimate:
    """Estimate the units that are left from up to ``budget`` sampled items (None: all items).

    Reads the sources and the output from this process, even if the job would run on a cluster. Raises the errors that
    the job itself would raise.
    """
    recipe.check_vae(card)
    check_members(recipe, card)
    if run.retry_rejects:
        raise ConfigError("--dry-run cannot estimate retries of rejects: leave out --retry-rejects")
    if budget is not None and budget < 1:
        raise ConfigError(f"--dry-run takes a number of at least 1, or 'all', got {budget}")
    sources = find_sources(run.sources)
    store = Store(run.output, single_writer=run.single_writer)
    environment = recorded_environment(store)
    if environment is None:
        run = resolve_resources(run, None, say, start_ray=False)
    recipe = resolve_compute_dtype(recipe, run, store)
    plan, planned, left = _plan_units(store, sources, recipe, say)
    if left and environment is not None:
        run = resolve_resources(run, environment, say, start_ray=False)
        check_device(store.url, environment, run)
    sample = _choose_sample(left, budget)
    say(
        f"{number(len(planned), 'unit')} planned, {len(left)} left; "
        f"probing {'all' if budget is None else f'up to {budget}'} {'item' if budget == 1 else 'items'}"
    )
    urls = {source.name: source.url for source in sources}
    _probe_items(draw_items(sample.sampled_units, budget, urls, recipe, plan.columns), recipe, run, card, plan)
    unit_clips, unit_bytes = count_units(sample) if sample.is_complete else simulate_units(sample)
    return Estimate(
        output=store.url,
        recipe=recipe,
        run=run,
        sources=sources,
        num_units=len(planned),
        num_left=len(left),
        sample=sample,
        unit_clips=unit_clips,
        unit_bytes=unit_bytes,
    )


def _plan_units(
    store: Store, sources: list[Source], recipe: Recipe, say: Callable[[str], None]
) -> tuple[Plan, list[Unit], list[Unit]]:
    """Return the plan that the job would have, its units without retries, and those that are not committed."""
    with contextlib.suppress(FileNotFoundError):  # the output does not exist yet
        check_recipe(store, recipe)
    plan = preview_plan(store, sources, recipe, say)
    try:
        committed = committed_units(store)
    except FileNotFoundError:  # object stores list a missing folder as empty, so the bucket is missing
        raise ConfigError(f"the output cannot be written: the bucket of {store.url} does not exist") from None
    planned = [unit for unit in plan.units if not unit.retries]
    return plan, planned, [unit for unit in planned if unit.name not in committed]


def _choose_sample(left: list[Unit], budget: int | None) -> Sample[ItemEstimate]:
    """Choose the units to sample; their items are not drawn yet."""
    return Sample(
        formats=[
            FormatSample(units=units, sampled_units=[SampledUnit[ItemEstimate](unit=unit) for unit in chosen])
            for units, chosen in choose_units(left, budget)
        ]
    )


def _probe_items(
    items: Iterator[tuple[SampledUnit[ItemEstimate], Item]], recipe: Recipe, run: Run, card: Card, plan: Plan
) -> None:
    """Estimate every item in as many decoder processes as an encoder has; appends to the observations of its unit.

    This machine may have fewer CPUs than those of the encoders.
    """
    run = dataclasses.replace(run, cpus=min(run.encoder_cpus, available_cpus()))
    decoders = Decoders(recipe, run)

    def probe(pair: tuple[SampledUnit[ItemEstimate], Item], _: Callable[[], None]) -> Iterator[ItemEstimate]:
        sampled, item = pair
        rows = RowBuilder(sampled.unit, recipe, card, plan.columns[sampled.unit.generation])
        yield estimate_item(item, rows, decoders, recipe, card)

    try:
        for (sampled, _), item_estimate in decode_in_order(items, probe, ahead=run.encoder_cpus + 1):
            sampled.observations.append(item_estimate)
    finally:
        decoders.close()


def _count_clips(clip_size: ClipSize) -> Callable[[ItemEstimate], float]:
    return lambda item: item.clips[clip_size]

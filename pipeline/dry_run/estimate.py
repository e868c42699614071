"""What a job would do, without doing it: headers are probed, windows planned and sizes reckoned; nothing is written.

What only decoding or encoding shows is not in it: damage inside of a video, frozen pictures, latents out of range.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dry_run.sampling import SEED, Sample, Stratum, Total, Visit, choose_units, visit_items
from pipeline.encode.prefetch import decode_in_order
from pipeline.errors import ConfigError, Reject, Rejected
from pipeline.output.counts import Counts
from pipeline.output.dataset import check_recipe, resolve_compute_dtype
from pipeline.output.members import check_members
from pipeline.output.plan import committed_units, preview_plan
from pipeline.output.rows import RowBuilder, sample_bytes
from pipeline.output.tar_writer import archive_bytes
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.sources.discovery import find_sources
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item
from pipeline.sources.units import Plan
from pipeline.storage.store import Store
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Decoded, RejectedWindow
from pipeline.video.windows import Skip, VideoFacts, Window, repeats, select_windows
from stvae.card import Card

MOST_DRAWN_UNITS = 400

Shape = tuple[Bucket, Bucket]
"""A clip's own size, and the bucket that it belongs to."""
Speeds = Mapping[Bucket, float | None]
"""Clips per second of one encoder; None where a micro-batch does not fit its memory."""


@dataclass(kw_only=True, slots=True)
class Look:
    """What would become of one item."""

    clips: Counter[Shape] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    """Outcomes of its windows. ``size_bytes`` is the size of its members in the tar."""
    num_frames: int = 0
    """At the recipe's rate."""
    fps: float | None = None
    duration_s: float = 0.0
    clips_s: float = 0.0
    """Of its duration, what is in clips."""
    enlargement: float = 0.0
    """That the nearest bucket would need."""
    least_kept: float = 1.0
    """Share of the picture that its most cropped clip keeps."""
    repeating: int = 0
    """Clips in which a frame is there twice."""
    is_image: bool = False
    fault: str = ""
    """Of a reject, for people."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job would find and write, as far as it is left to do."""

    output: str
    recipe: Recipe
    run: Run
    num_units: int
    """Of the whole plan, but for what is tried again, and of these what is ..."""
    num_left: int
    """... not committed."""
    sample: Sample[Look]
    unit_clips: list[Counter[Shape]]
    """Of every unit that is left, or of units drawn as the sample has it."""
    unit_bytes: list[int]
    """Of the members of their shards."""

    def total(self, measure: Callable[[Look], float]) -> Total:
        """Of a measure over all items that are left."""
        return self.sample.total(measure)

    @property
    def used_buckets(self) -> list[Bucket]:
        """The recipe's buckets that clips fall into, in its order."""
        used = {bucket for look in self.sample.found for _, bucket in look.clips}
        return [bucket for bucket in self.recipe.buckets if bucket in used]

    @property
    def num_shards(self) -> int:
        """Units that have clips."""
        return round(self.num_left * len(self.shard_bytes) / max(1, len(self.unit_bytes)))

    @property
    def shard_bytes(self) -> list[int]:
        """Of the units in ``unit_bytes`` that have clips, the sizes of their shards."""
        return [archive_bytes(size) for size in self.unit_bytes if size]

    @property
    def size_bytes(self) -> Total:
        """Of all shards: members, and what ends an archive."""
        members = self.total(lambda look: look.counts.size_bytes)
        ends = (sum(self.shard_bytes) - sum(self.unit_bytes)) / max(1, len(self.unit_bytes)) * self.num_left
        return Total(value=members.value + ends, low=members.low + ends, high=members.high + ends)

    @property
    def filled(self) -> float:
        """Share of micro-batches' places that hold a clip: the last of each size in a unit is filled up with blanks."""
        clips, places = self._clips_and_places()
        return sum(clips.values()) / max(1, sum(places.values()))

    def encoder_s(self, speeds: Speeds) -> float | None:
        """Time of encoders, blanks included; None where a micro-batch does not fit the memory. Shortened clips are
        taken to cost as their frames."""
        clips, places = self._clips_and_places()
        seconds = 0.0
        for (size, bucket), count in clips.items():
            speed = speeds.get(bucket)
            if not speed:
                return None
            blanks = places[size, bucket] / count
            shorter = size.num_frames / bucket.num_frames
            seconds += self.total(_count_of((size, bucket))).value * blanks * shorter / speed
        return seconds

    def _clips_and_places(self) -> tuple[Counter[Shape], Counter[Shape]]:
        clips: Counter[Shape] = Counter()
        places: Counter[Shape] = Counter()
        for unit in self.unit_clips:
            for shape, count in unit.items():
                micro_batch = self.recipe.clips_per_call[shape[1]]
                clips[shape] += count
                places[shape] += -(-count // micro_batch) * micro_batch
        return clips, places


def speeds_given(recipe: Recipe, clips_per_s: Sequence[float]) -> Speeds:
    """Speeds that somebody measured: one for all buckets, or one for each."""
    if len(clips_per_s) not in (1, len(recipe.buckets)) or min(clips_per_s) <= 0:
        raise ConfigError(
            f"--clips-per-s needs one number above 0, or one for each of {len(recipe.buckets)} buckets, "
            f"got {', '.join(f'{speed:g}' for speed in clips_per_s)}"
        )
    every = clips_per_s if len(clips_per_s) > 1 else list(clips_per_s) * len(recipe.buckets)
    return dict(zip(recipe.buckets, every, strict=True))


def estimate(recipe: Recipe, run: Run, card: Card, budget: int | None, say: Callable[[str], None]) -> Estimate:
    """Look at up to ``budget`` items (None: all) of what is left to do. Errors are those that the job would end with.

    Reads sources and the output from this process, also where the job itself would run on a cluster.
    """
    recipe.check_vae(card)
    check_members(recipe, card)
    if run.retry_rejects:
        raise ConfigError("--dry-run does not know what rejects become when tried again: leave out --retry-rejects")
    if budget is not None and budget < 1:
        raise ConfigError(f"--dry-run takes a number of at least 1, or 'all', got {budget}")
    sources = find_sources(run.sources)
    store = Store(run.output, single_writer=run.single_writer)
    recipe = resolve_compute_dtype(recipe, run, store)
    with contextlib.suppress(FileNotFoundError):  # nothing was begun
        check_recipe(store, recipe)
    plan = preview_plan(store, sources, recipe)
    try:
        committed = committed_units(store)
    except FileNotFoundError:  # of a folder that does not exist yet, stores list nothing
        raise ConfigError(f"the output cannot be written: {store.url} is in no bucket that exists") from None
    planned = [unit for unit in plan.units if not unit.retries]
    left = [unit for unit in planned if unit.name not in committed]
    chosen = choose_units(left, budget)
    strata = [Stratum(units=units, visits=[Visit[Look](unit=unit) for unit in drawn]) for units, drawn in chosen]
    sample = Sample(strata=strata)
    looked = "all" if budget is None else f"up to {budget}"
    say(f"{len(planned)} units planned, {len(left)} left; looking at {looked} items")
    found = visit_items(sample.visits, budget, {source.name: source.url for source in sources}, recipe, plan.columns)
    _look_at(found, recipe, run, card, plan)
    unit_clips, unit_bytes = _real_units(sample) if sample.exact else _drawn_units(sample)
    return Estimate(
        output=store.url,
        recipe=recipe,
        run=run,
        num_units=len(planned),
        num_left=len(left),
        sample=sample,
        unit_clips=unit_clips,
        unit_bytes=unit_bytes,
    )


def _look_at(found: Iterator[tuple[Visit[Look], Item]], recipe: Recipe, run: Run, card: Card, plan: Plan) -> None:
    """Probe every item, in as many children as an encoder has, and note at its visit what would become of it."""
    decoders = Decoders(recipe, run)

    def look(retry_call: tuple[Visit[Look], Item], _: Callable[[], None]) -> Iterator[Look]:
        visit, item = retry_call
        rows = RowBuilder(visit.unit, recipe, card, plan.columns[visit.unit.generation])
        yield _look(item, rows, decoders, recipe, card)

    try:
        for (visit, _), seen in decode_in_order(found, look, ahead=run.cpus + 1):
            visit.found.append(seen)
    finally:
        decoders.close()


def _look(item: Item, rows: RowBuilder, decoders: Decoders, recipe: Recipe, card: Card) -> Look:
    """What would become of an item, from its header and index."""
    probed: list[VideoFacts] = []

    def plan_nothing(facts: VideoFacts) -> list[Window | Skip]:
        probed.append(facts)
        return []

    try:
        with open(fetch(item, recipe), "rb", buffering=0) as file:
            rejected: list[Decoded] = list(decoders.clips(file.fileno(), plan_nothing))
    except Rejected as fault:
        return _rejected(item, fault.reject)
    finally:
        item.content = None  # may be large, and is not needed any more
    for _, outcome in rejected:
        assert isinstance(outcome, RejectedWindow)
        return _rejected(item, outcome.reject)
    return _planned(item, probed[-1], rows, recipe, card)


def _rejected(item: Item, reject: Reject) -> Look:
    return Look(counts=Counts(rejects=Counter([reject.name])), fault=f"{item.key}: {reject.message}")


def _planned(item: Item, facts: VideoFacts, rows: RowBuilder, recipe: Recipe, card: Card) -> Look:
    at_own_rate = recipe.fps is None or facts.is_image
    look = Look(
        num_frames=len(facts.pts) if at_own_rate else math.ceil(facts.duration_s * (recipe.fps or 0.0)),
        fps=facts.fps,
        is_image=facts.is_image,
        duration_s=0.0 if facts.is_image else facts.duration_s,
        enlargement=min(max(b.height / facts.height, b.width / facts.width) for b in recipe.buckets),
    )
    for planned in select_windows(facts, recipe, card.geometry):
        if isinstance(planned, Skip):
            look.counts.skips[planned.reason] += 1
            continue
        place = planned.placement
        look.clips[planned.bucket, planned.filled] += 1
        look.counts.samples += 1
        look.counts.frames += planned.bucket.num_frames
        look.counts.size_bytes += sample_bytes(rows, item, facts, planned)
        look.clips_s += 0.0 if facts.is_image else planned.end_s - planned.start_s
        kept = place.height * place.width / (place.scaled_height * place.scaled_width)
        look.least_kept = min(look.least_kept, kept)
        look.repeating += repeats(planned.pts) > 0
    return look


def _real_units(sample: Sample[Look]) -> tuple[list[Counter[Shape]], list[int]]:
    """Clips and bytes of each unit, all of whose items were looked at."""
    clips, sizes = [], []
    for visit in sample.visits:
        clips.append(sum((look.clips for look in visit.found), Counter[Shape]()))
        sizes.append(sum(look.counts.size_bytes for look in visit.found))
    return clips, sizes


def _drawn_units(sample: Sample[Look]) -> tuple[list[Counter[Shape]], list[int]]:
    """Clips and bytes of units of the sizes that there are, filled with items drawn from the sample."""
    generator = np.random.default_rng(SEED)
    clips: list[Counter[Shape]] = []
    sizes: list[int] = []
    num_units = sum(len(stratum.units) for stratum in sample.strata)
    for stratum in sample.strata:
        looks = [look for visit in stratum.visits for look in visit.found]
        if not looks:
            clips += [Counter()] * len(stratum.units)
            sizes += [0] * len(stratum.units)
            continue
        weights = [visit.num_items / len(visit.found) for visit in stratum.visits for _ in visit.found]
        shapes = sorted({shape for look in looks for shape in look.clips})
        table = np.array([[look.clips[shape] for shape in shapes] + [look.counts.size_bytes] for look in looks])
        count = max(1, round(MOST_DRAWN_UNITS * len(stratum.units) / max(num_units, MOST_DRAWN_UNITS)))
        shares: npt.NDArray[Any] = np.array(weights) / sum(weights)
        for size in generator.choice(stratum.sizes, count, replace=count > len(stratum.units)):
            row = generator.multinomial(max(1, round(size)), shares) @ table
            clips.append(Counter({shape: int(n) for shape, n in zip(shapes, row[:-1], strict=True) if n}))
            sizes.append(int(row[-1]))
    return clips, sizes


def _count_of(shape: Shape) -> Callable[[Look], float]:
    return lambda look: look.clips[shape]

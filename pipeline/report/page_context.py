"""Everything that the template of ``report.html`` shows, as one typed object."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from markupsafe import Markup

from pipeline.progress.activities import activity_label
from pipeline.report import charts
from pipeline.report.bucket_stats import BucketStats, GroupStats
from pipeline.report.dataset_stats import (
    DURATION_EDGES_S,
    BinCounts,
    DatasetStats,
    ReasonStats,
    SourceStats,
)
from pipeline.report.display_text import format_time
from pipeline.report.history import MAX_SLOWEST, Job
from pipeline.report.int8_loss import describe_loss, mean_loss_db
from pipeline.report.latent_stats import MIN_CLIPS_TO_JUDGE, LatentStatistics
from pipeline.report.notices import list_notices
from pipeline.report.pictures import Picture
from pipeline.report.scene_stats import SceneStats
from pipeline.report.text_layers import LayerSection
from stvae.card import Card

MAX_ROWS = 20
"""Rows of a table whose length depends on the dataset; one more row sums or counts the others."""
MAX_JOB_CHARTS = 4
MAX_OPEN_BUCKETS = 3
"""Buckets of the gallery that are shown at once; the others unfold."""
TICK_STEPS_S = [
    n * unit for unit, counts in ((1, (1, 2, 5, 10, 20)), (60, (1, 2, 5, 10, 20)), (3600, (1, 2, 4, 8))) for n in counts
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSection:
    """Contents of the section on latent statistics."""

    statistics: LatentStatistics
    rows: list[tuple[str, ...]]
    """Mean and standard deviation per channel as text; with those of normalized latents if ``is_normalized``."""
    is_normalized: bool
    """True if the VAE has one shift and scale per channel, so that normalized latents can be described."""
    chart: Markup
    """Chart of the normalized channels; empty without them."""
    vae_shift_and_scale: str
    """The VAE's shift and scale as JSON; empty if they differ from latent frame to latent frame."""
    few_clips: bool
    min_clips: int = MIN_CLIPS_TO_JUDGE


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """Contents of the page. Tables are sorted by size, largest first."""

    stats: DatasetStats
    history: Sequence[Job]
    pictures: Sequence[Picture]
    layers: Sequence[LayerSection] = ()
    """Text layers by name."""
    max_rows: int = MAX_ROWS
    max_open_buckets: int = MAX_OPEN_BUCKETS
    time: str = field(default_factory=lambda: format_time(time.time()))

    @property
    def command(self) -> str:
        """Command line that makes the page again."""
        return f"python jobs/report.py {shlex.quote(self.stats.url)}"

    @cached_property
    def notices(self) -> list[str]:
        """Sentences on what to look at first."""
        return list_notices(self.stats, self.pictures)

    @cached_property
    def buckets(self) -> list[tuple[str, BucketStats]]:
        """Buckets with the most clips first, group by group in the recipe's order."""
        groups = self.stats.dataset.recipe.group_names

        def order(pair: tuple[str, BucketStats]) -> tuple[int, int, str]:
            group = pair[0].rpartition("=")[0]
            return groups.index(group) if group in groups else 0, -pair[1].clips, pair[0]

        return sorted(self.stats.buckets.items(), key=order)

    @cached_property
    def groups(self) -> list[tuple[str, GroupStats]]:
        """Groups of buckets in the recipe's order; empty without groups."""
        return [(name, self.stats.groups[name]) for name in self.stats.dataset.recipe.group_names]

    @property
    def most_clips(self) -> int:
        """Number of clips in the largest bucket."""
        return max(bucket.clips for _, bucket in self.buckets)

    @cached_property
    def sources(self) -> list[tuple[str, SourceStats]]:
        """Sources with the most items first."""
        return sorted(self.stats.sources.items(), key=lambda pair: (-pair[1].num_items, pair[0]))

    @property
    def devices(self) -> dict[str, int]:
        """Number of clips by the device that encoded them, most clips first."""
        return self.stats.totals.samples_by_device(self.stats.dataset.environment)

    @cached_property
    def skips(self) -> list[tuple[str, ReasonStats]]:
        """Skip reasons, most frequent first."""
        return _most_frequent(self.stats.skips)

    @cached_property
    def rejects(self) -> list[tuple[str, ReasonStats]]:
        """Names of rejects, most frequent first."""
        return _most_frequent(self.stats.rejects)

    @cached_property
    def length_charts(self) -> list[tuple[str, Markup]]:
        """Titles and histograms of lengths."""
        counts = (("Videos by length", self.stats.item_durations), ("Clips by length", self.stats.clip_durations))
        return [(title, _length_chart(title, bins)) for title, bins in counts if bins.any()]

    @property
    def scenes(self) -> SceneStats | None:
        """Counts of scenes; None if the recipe does not detect them."""
        return None if self.stats.dataset.recipe.scenes == "none" else self.stats.scenes

    @cached_property
    def latents(self) -> LatentSection | None:
        """The section on latents; None without a sample."""
        return _latent_section(self.stats.latents, self.stats.dataset.card) if self.stats.latents else None

    @property
    def int8_loss(self) -> str:
        """Sentence on the cost of int8 in the clips of the gallery; empty if that is not known."""
        loss_db = mean_loss_db((picture.psnr_db, picture.float16_psnr_db) for picture in self.pictures)
        return "" if loss_db is None else describe_loss(loss_db)

    @cached_property
    def gallery(self) -> list[tuple[str, list[Picture]]]:
        """Pictures by bucket."""
        return [(bucket, list(group)) for bucket, group in groupby(self.pictures, lambda picture: picture.bucket_name)]

    @cached_property
    def throughput(self) -> list[tuple[Job, Markup]]:
        """The newest jobs with charts of their clips per second."""
        return [(job, _throughput_chart(job)) for job in self.history if job.timed][-MAX_JOB_CHARTS:]

    @cached_property
    def activities(self) -> list[tuple[str, float]]:
        """Labels and seconds of what units spent time on, largest first, the remainder last."""
        seconds: Counter[str] = Counter()
        for job in self.history:
            seconds.update(job.activities)
        rest_s = seconds.pop("rest", 0.0)
        labeled = [(activity_label(name), activity_s) for name, activity_s in seconds.most_common()]
        return [*labeled, ("everything else", rest_s)] if labeled else []

    @property
    def slowest(self) -> list[tuple[float, str, int]]:
        """(seconds, unit, samples) of the slowest units of all jobs."""
        return sorted((unit for job in self.history for unit in job.slowest), reverse=True)[:MAX_SLOWEST]


def _most_frequent(reasons: dict[str, ReasonStats]) -> list[tuple[str, ReasonStats]]:
    return sorted(reasons.items(), key=lambda pair: (-pair[1].count, pair[0]))


def _length_chart(title: str, counts: BinCounts) -> Markup:
    """Draw a histogram without the empty bins at its ends."""
    filled = counts.nonzero()[0]
    first, last = int(filled[0]), int(filled[-1])
    labels = [_tick_label(edge) for edge in DURATION_EDGES_S[first : last + 2]]
    return charts.histogram(counts[first : last + 1].tolist(), labels, title)


def _tick_label(seconds: float) -> str:
    """Label an edge of a bin or a time on an axis."""
    if seconds == float("inf"):
        return "longer"
    if seconds < 60:
        return f"{seconds:g} s" if seconds else "0"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _latent_section(latents: LatentStatistics, card: Card) -> LatentSection:
    normalized = latents.normalized(card)
    columns = [latents.mean, latents.std, *(normalized or ())]
    title = "Mean and standard deviation of each normalized channel"
    return LatentSection(
        statistics=latents,
        rows=[tuple(f"{column[c]:.4f}" for column in columns) for c in range(len(latents.mean))],
        is_normalized=normalized is not None,
        chart=charts.whiskers(*normalized, title) if normalized else Markup(""),
        vae_shift_and_scale=json.dumps({"shift": card.shift, "scale": card.scale}) if normalized else "",
        few_clips=latents.clips < MIN_CLIPS_TO_JUDGE,
    )


def _throughput_chart(job: Job) -> Markup:
    edges, rates = job.throughput()
    days = max(1, round(edges[-1] / 5 / 86400))
    step_s = next((step_s for step_s in TICK_STEPS_S if edges[-1] / step_s <= 5), days * 86400)
    ticks = [(n * step_s, _tick_label(n * step_s)) for n in range(int(edges[-1] // step_s) + 1)]
    return charts.steps(edges.tolist(), rates.tolist(), ticks, "Clips per second over time")

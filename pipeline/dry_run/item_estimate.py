"""Expected outcome of one item, from its header and index: nothing is decoded."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bucket import Bucket
from pipeline.errors import Reject, Rejected
from pipeline.output.counts import Counts
from pipeline.output.rows import RowBuilder, sample_bytes
from pipeline.progress.captions import metadata_hints
from pipeline.recipe import Recipe
from pipeline.sources.fetch import fetch
from pipeline.sources.item import Item
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import RejectedWindow
from pipeline.video.placement import CropPosition, crop_position
from pipeline.video.ranges import positions_in_range, select_in_range
from pipeline.video.windows import Part, Skip, VideoFacts, Window, repeats
from stvae.card import Card

ClipSize = tuple[Bucket, Bucket]
"""A clip's own size, which is shorter than its bucket for a shortened clip, and its bucket."""


@dataclass(kw_only=True, slots=True)
class ItemEstimate:
    """Expected outcome of one item."""

    clips: Counter[ClipSize] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    """Outcomes of its windows. ``size_bytes`` is the size of its members in the shard."""
    num_frames: int = 0
    """Number of frames at the recipe's frame rate."""
    fps: float | None = None
    duration_s: float = 0.0
    used_s: float = 0.0
    """Part of its duration that is in clips, in the group of buckets that uses most of it."""
    num_scenes: int = 0
    """Number of scenes; 0 without ``--scenes``."""
    cut_s: float = 0.0
    """Part of its duration that is in scenes too short for a clip, or in gradual transitions."""
    detection_s: float = 0.0
    """Time that one decoder process takes to find the scenes."""
    group_skips: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of skips by group of buckets and reason; the group is empty without groups."""
    upscale: dict[str, float] = field(default_factory=dict)
    """Enlargement that the bucket closest in size would need, by group; at most 1 if none is needed."""
    min_kept_share: float = 1.0
    """Share of the picture that is left after cropping, in the clip that loses most."""
    repeating_clips: int = 0
    """Number of clips in which a frame occurs twice."""
    is_image: bool = False
    reject_message: str = ""
    caption_hints: list[str] = field(default_factory=list)
    """Where its metadata may hold a caption, if it has none."""
    note: str | None = None
    """Its ``Item.note``."""


def estimate_item(item: Item, rows: RowBuilder, decoders: Decoders, recipe: Recipe, card: Card) -> ItemEstimate:
    """Fetch and probe an item, and plan its windows. ``rows`` are needed for the size of samples."""
    probed: list[VideoFacts] = []

    def plan_nothing(facts: VideoFacts, item_range: object) -> list[Window | Skip]:
        probed.append(facts)
        return []

    try:
        with fetch(item, recipe) as file:
            begin_s = time.monotonic()
            outcomes = [decoded for _, decoded in decoders.clips_of_ranges(file.fileno(), [item.range], [plan_nothing])]
            probing_s = time.monotonic() - begin_s
    except Rejected as error:
        return _from_reject(item, error.reject)
    finally:
        item.content = None  # may be large and is no longer needed
    for _, outcome in outcomes:
        assert isinstance(outcome, RejectedWindow)  # no window was planned
        return _from_reject(item, outcome.reject)
    crop = crop_position(recipe, rows.unit.source, item.ordinal, item.key)
    result = _from_facts(item, probed[-1], rows, recipe, card, crop)
    if probed[-1].scenes is not None:
        result.detection_s = probing_s
    return result


def _from_reject(item: Item, reject: Reject) -> ItemEstimate:
    return ItemEstimate(counts=Counts(rejects=Counter([reject.name])), reject_message=f"{item.key}: {reject.message}")


def _from_facts(
    item: Item, facts: VideoFacts, rows: RowBuilder, recipe: Recipe, card: Card, crop: CropPosition
) -> ItemEstimate:
    has_own_rate = recipe.fps is None or facts.is_image
    try:
        windows = select_in_range(facts, item.range, recipe, card.geometry, crop)
    except Rejected as error:
        return _from_reject(item, error.reject)
    start, stop = positions_in_range(facts, item.range, recipe.range_unit)
    part = Part(start=start, stop=stop).of(facts)
    estimate = ItemEstimate(
        num_frames=len(part.pts) if has_own_rate else math.ceil(part.duration_s * (recipe.fps or 0.0)),
        fps=facts.fps,
        is_image=facts.is_image,
        caption_hints=[] if item.caption else metadata_hints([item.meta]),
        note=item.note,
        duration_s=0.0 if facts.is_image else part.duration_s,
        upscale={
            group: min(max(b.height / facts.height, b.width / facts.width) for b in buckets)
            for group, buckets in recipe.bucket_groups.items()
        },
    )
    estimate.num_scenes = len(facts.scenes or ())
    if facts.scenes is not None:
        estimate.cut_s = part.duration_s - _seconds_of_scenes(windows)
    used_s: defaultdict[str, float] = defaultdict(float)
    for window in windows:
        if isinstance(window, Skip):
            estimate.counts.skips[window.reason] += 1
            estimate.group_skips[window.group, window.reason] += 1
            continue
        placement = window.placement
        estimate.clips[window.bucket, window.filled] += 1
        estimate.counts.samples += 1
        estimate.counts.captions += bool(item.caption)
        estimate.counts.frames += window.bucket.num_frames
        estimate.counts.size_bytes += sample_bytes(rows, item, facts, window)
        used_s[window.group] += 0.0 if facts.is_image else window.end_s - window.start_s
        kept = placement.height * placement.width / (placement.scaled_height * placement.scaled_width)
        estimate.min_kept_share = min(estimate.min_kept_share, kept)
        estimate.repeating_clips += repeats(window.pts) > 0
    estimate.used_s = max(used_s.values(), default=0.0)
    return estimate


def _seconds_of_scenes(windows: Sequence[Window | Skip]) -> float:
    """Duration of the scenes in which windows were laid."""
    used = {window.scene for window in windows if not (isinstance(window, Skip) and window.reason == "cut")}
    return sum(scene.end_s - scene.start_s for scene in used if scene is not None)

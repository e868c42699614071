"""Notes on an estimate: sentences about what to change before a job starts, each with what to do."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator

from pipeline.bucket import Bucket, group_buckets
from pipeline.dry_run.estimate import EncoderSpeeds, Estimate
from pipeline.dry_run.item_estimate import ItemEstimate
from pipeline.encode.prefetch import CLIPS_AHEAD
from pipeline.encode.unit_encoder import UNITS_IN_FLIGHT
from pipeline.progress.captions import metadata_note, no_captions_note
from pipeline.progress.formatting import byte_size
from pipeline.progress.reject_limit import too_many_rejects
from pipeline.sources.formats import format_of

MIN_SHARE = 0.2
"""Share of items or clips above which something is worth a note."""
LARGE_CROP = 0.4
"""Share of the picture whose loss is worth a note."""
SMALL_SHARD_BYTES, GOOD_SHARD_BYTES, LARGE_SHARD_BYTES = 10e6, 500e6, 5e9
MAX_UNIT_CLIPS = 4096
"""Largest unit to propose: a failure costs up to one unit of work."""
MAX_LISTED_BUCKETS = 6
RGB_BYTES = 3
COPIES_IN_DECODER = 2
"""Number of times that a decoder process holds the frames of a clip while it stacks them."""


def list_notes(estimate: Estimate, speeds: EncoderSpeeds | None) -> list[str]:
    """Return every note that applies to an estimate."""
    checks = [
        _check_rejects,
        _check_captions,
        _check_metadata,
        _check_short_items,
        _check_small_items,
        _check_repeated_frames,
        _check_crops,
        _check_single_frames,
        _check_unused_buckets,
        _check_micro_batches,
        _check_shard_sizes,
        _check_decoder_memory,
        _check_clip_memory,
    ]
    notes = [note for check in checks for note in check(estimate)]
    return notes + list(_check_device_memory(estimate, speeds))


def _share(estimate: Estimate, part: Callable[[ItemEstimate], float], whole: Callable[[ItemEstimate], float]) -> float:
    """Return the total of ``part`` divided by that of ``whole``, over all items; 0 if there is nothing."""
    whole_total = estimate.total(whole).value
    return estimate.total(part).value / whole_total if whole_total else 0.0


def _count_item(item: ItemEstimate) -> float:
    return 1.0


def _count_clips(item: ItemEstimate) -> float:
    return item.counts.samples


def _check_rejects(estimate: Estimate) -> Iterator[str]:
    rejects = estimate.total(lambda item: item.counts.rejects.total()).value
    windows = rejects + estimate.total(lambda item: item.counts.samples + item.counts.skips.total()).value
    if too_many_rejects(round(rejects), round(windows), estimate.run.max_rejects, final=True):
        yield (
            f"{rejects / windows:.0%} of the windows are rejects, above --max-rejects {estimate.run.max_rejects:g}: "
            "the job would stop with exit code 3"
        )


def _check_captions(estimate: Estimate) -> Iterator[str]:
    items = estimate.sample.observations
    if any(item.counts.samples for item in items) and not any(item.counts.captions for item in items):
        yield no_captions_note(estimate.sources, (hint for item in items for hint in item.caption_hints))


def _check_metadata(estimate: Estimate) -> Iterator[str]:
    for name in sorted({item.note for item in estimate.sample.observations if item.note}):
        yield metadata_note(name, round(estimate.total(_count_noted_clips(name)).value))


def _count_noted_clips(note: str) -> Callable[[ItemEstimate], float]:
    return lambda item: item.counts.samples if item.note == note else 0


def _check_short_items(estimate: Estimate) -> Iterator[str]:
    for group in estimate.recipe.bucket_groups:
        share, items = _skipped(estimate, group, "too_short")
        num_frames = [item.num_frames for item in items]
        if share > MIN_SHARE:
            shorten = "" if estimate.recipe.remainder == "shorten" else ", or use --remainder shorten"
            yield (
                f"{share:.0%} of the items are shorter than the shortest bucket of their size{_in_group(group)}; half of "
                f"those have at most {statistics.median_low(num_frames)} frames: add a bucket with fewer frames{shorten}"
            )


def _check_small_items(estimate: Estimate) -> Iterator[str]:
    for group in estimate.recipe.bucket_groups:
        share, items = _skipped(estimate, group, "too_small")
        upscales = sorted(item.upscale[group] for item in items)
        if share > MIN_SHARE:
            half, most = (_round_up(upscales[int(part * (len(upscales) - 1))]) for part in (0.5, 0.9))
            admits = most if half == most else f"{half} would admit half and {most}"
            yield (
                f"{share:.0%} of the items are smaller than every bucket{_in_group(group)}: --max-upscale {admits} would "
                "admit nine in ten of them; or add a smaller bucket"
            )


def _skipped(estimate: Estimate, group: str, reason: str) -> tuple[float, list[ItemEstimate]]:
    """Return the share of items that a group of buckets skips for a reason, and those of them that were sampled."""
    share = _share(estimate, lambda item: (group, reason) in item.group_skips, _count_item)
    return share, [item for item in estimate.sample.observations if (group, reason) in item.group_skips]


def _in_group(group: str) -> str:
    return f" of group {group}" if group else ""


def _check_repeated_frames(estimate: Estimate) -> Iterator[str]:
    clip_share = _share(estimate, lambda item: item.repeating_clips, _count_clips)
    rates = [
        item.fps
        for item in estimate.sample.observations
        if item.fps and (item.repeating_clips or "repeated_frames" in item.counts.skips)
    ]
    skip_share = _share(estimate, lambda item: "repeated_frames" in item.counts.skips, _count_item)
    skipped = f", and {skip_share:.0%} of the items have clips that exceed --max-repeats" if skip_share else ""
    if rates and max(clip_share, skip_share) > MIN_SHARE:
        yield (
            f"--fps {estimate.recipe.fps:g} repeats frames in {clip_share:.0%} of the clips{skipped}: "
            f"half of those videos have at most {statistics.median_low(rates):.4g} frames per second; use a lower --fps"
        )


def _check_crops(estimate: Estimate) -> Iterator[str]:
    share = _share(estimate, lambda item: item.counts.samples * (1 - item.min_kept_share > LARGE_CROP), _count_clips)
    if share > MIN_SHARE:
        yield (
            f"{share:.0%} of the clips lose more than {LARGE_CROP:.0%} of the picture to cropping: "
            "add buckets whose aspect ratio is closer to that of the videos"
        )


def _check_single_frames(estimate: Estimate) -> Iterator[str]:
    """Videos that are too short for the other buckets fall into a bucket of one frame."""

    def count_single_frames(item: ItemEstimate) -> float:
        return 0 if item.is_image else sum(n for (size, _), n in item.clips.items() if size.num_frames == 1)

    share = _share(estimate, count_single_frames, _count_clips)
    if share > MIN_SHARE:
        yield (
            f"{share:.0%} of the clips are single frames of videos that are too short for other buckets"
            + ("; --windows first takes one clip of each video" if estimate.recipe.windows != "first" else "")
        )


def _check_unused_buckets(estimate: Estimate) -> Iterator[str]:
    used = estimate.used_buckets
    unused = [str(bucket) for bucket in estimate.recipe.buckets if bucket not in used]
    if unused and used:
        num_more = len(unused) - MAX_LISTED_BUCKETS
        more = f" and {num_more} more" if num_more > 0 else ""
        yield f"no sampled item falls into {', '.join(unused[:MAX_LISTED_BUCKETS])}{more}"


def _check_micro_batches(estimate: Estimate) -> Iterator[str]:
    if estimate.run.encoder_gpus and estimate.used_buckets and set(estimate.recipe.micro_batch) == {1}:
        yield "every micro-batch is 1, which leaves a GPU idle in small buckets: --calibrate proposes sizes"
    if 1 - estimate.filled > MIN_SHARE:
        yield (
            f"{1 - estimate.filled:.0%} of the slots of micro-batches are padding, since every unit pads its last "
            "ones: use more --unit-clips, fewer buckets or smaller micro-batches"
        )


def _check_shard_sizes(estimate: Estimate) -> Iterator[str]:
    if not estimate.shard_bytes:
        return
    typical = statistics.median(estimate.shard_bytes)
    if estimate.num_shards < 2 or SMALL_SHARD_BYTES <= typical <= LARGE_SHARD_BYTES:
        return
    unit_clips = estimate.recipe.unit_clips
    proposed = min(MAX_UNIT_CLIPS, max(1, round(unit_clips * GOOD_SHARD_BYTES / typical)))
    remedy = f"--unit-clips {proposed} makes them about {byte_size(typical * proposed / unit_clips)}"
    format_remedies = {format_of(unit).shard_size_advice for part in estimate.sample.formats for unit in part.units}
    if len(format_remedies) == 1:
        remedy = format_remedies.pop() or remedy
    side = "below" if typical < SMALL_SHARD_BYTES else "above"
    yield f"half of the shards are {side} {byte_size(typical)}: {remedy}"


def _check_decoder_memory(estimate: Estimate) -> Iterator[str]:
    """Memory of one decoder process, which holds one clip, and the same frames at the sizes of other groups."""
    limit_bytes = estimate.run.decode_memory_bytes
    largest = max(estimate.used_buckets, key=_pixel_bytes, default=None)
    if largest is None:
        return
    others = [max(map(_pixel_bytes, group)) for group in group_buckets(estimate.used_buckets).values()]
    needed_bytes = (COPIES_IN_DECODER - 1) * _pixel_bytes(largest) + sum(others)
    if needed_bytes > limit_bytes:
        groups = " with the other groups" if len(others) > 1 else ""
        yield (
            f"a clip of {largest} takes {byte_size(needed_bytes)} to decode{groups}, and a decoder "
            f"process may use {byte_size(limit_bytes)}: raise --decode-memory-gb, or its clips become rejects "
            "(decode/memory)"
        )


def _check_clip_memory(estimate: Estimate) -> Iterator[str]:
    """Memory of the decoded clips that wait for an encoder, compared with half of this machine's memory."""
    used, run = estimate.used_buckets, estimate.run
    if not used:
        return
    in_micro_batches = sum(_pixel_bytes(bucket) * estimate.recipe.clips_per_call[bucket] for bucket in used)
    decoded_ahead = (run.encoder_cpus + 1) * (CLIPS_AHEAD + 1) * max(map(_pixel_bytes, used))
    needed_bytes = UNITS_IN_FLIGHT * (in_micro_batches + decoded_ahead)
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > machine_bytes / 2:
        yield (
            f"an encoder may hold {byte_size(needed_bytes)} of decoded clips, and this machine has "
            f"{byte_size(machine_bytes)}: use fewer --cpus, smaller micro-batches or smaller buckets"
        )


def _check_device_memory(estimate: Estimate, speeds: EncoderSpeeds | None) -> Iterator[str]:
    for bucket, speed in (speeds or {}).items():
        if speed is None:
            size = estimate.recipe.clips_per_call[bucket]
            clips = "clip" if size == 1 else "clips"
            yield (
                f"a micro-batch of {size} {clips} of {bucket} does not fit in memory beside the VAE: "
                "--calibrate finds a size that fits"
            )


def _pixel_bytes(bucket: Bucket) -> int:
    """Size of a decoded clip of uint8 RGB frames."""
    return bucket.num_frames * bucket.height * bucket.width * RGB_BYTES


def _round_up(value: float) -> str:
    """Round up to two decimals, so that the proposed value is large enough."""
    return f"{-(-value * 100 // 1) / 100:.2f}"

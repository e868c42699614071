"""What somebody should know before a job starts: sentences about an estimate, each with what to do."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator

from pipeline.dry_run.estimate import Estimate, Look, Speeds
from pipeline.encode.encoder import UNITS_IN_FLIGHT
from pipeline.encode.prefetch import CLIPS_AHEAD
from pipeline.progress.formatting import byte_size
from pipeline.progress.progress import too_many_rejects
from pipeline.recipe import Bucket
from pipeline.sources.formats import format_of

MANY = 0.2
"""A share of items or clips that is worth a sentence."""
LARGE_CROP = 0.4
"""A share of the picture."""
SMALL_SHARD_BYTES, GOOD_SHARD_BYTES, LARGE_SHARD_BYTES = 10e6, 500e6, 5e9
MOST_UNIT_CLIPS = 4096
"""Of one unit, which is what a failure costs."""
RGB_BYTES = 3
COPIES_IN_A_CHILD = 2
"""Of a clip's frames, when they are put together."""


def concerns(estimate: Estimate, speeds: Speeds | None) -> list[str]:
    """Every sentence that an estimate gives cause for."""
    found = [_rejects, _short, _small, _repeated, _cropped, _pictures, _unused, _places, _shards]
    sentences = [sentence for concern in found for sentence in concern(estimate)]
    return sentences + list(_memory(estimate)) + list(_too_large(estimate, speeds))


def _share(estimate: Estimate, part: Callable[[Look], float], whole: Callable[[Look], float]) -> float:
    all_of_it = estimate.total(whole).value
    return estimate.total(part).value / all_of_it if all_of_it else 0.0


def _rejects(estimate: Estimate) -> Iterator[str]:
    rejects = estimate.total(_num_rejects).value
    windows = rejects + estimate.total(lambda look: look.counts.samples + look.counts.skips.total()).value
    if too_many_rejects(round(rejects), round(windows), estimate.run.max_rejects):
        yield (
            f"{rejects / windows:.0%} of the windows are rejects, above --max-rejects {estimate.run.max_rejects:g}: "
            "the job would stop with exit 3"
        )


def _short(estimate: Estimate) -> Iterator[str]:
    share = _share(estimate, lambda look: "too_short" in look.counts.skips, _one)
    frames = [look.num_frames for look in estimate.sample.found if "too_short" in look.counts.skips]
    if share > MANY:
        shorter = "" if estimate.recipe.remainder == "shorten" else ", or --remainder shorten"
        yield (
            f"{share:.0%} of the items are shorter than the shortest bucket of their size; half of those have at most "
            f"{statistics.median_low(frames)} frames: add a bucket with fewer frames{shorter}"
        )


def _small(estimate: Estimate) -> Iterator[str]:
    share = _share(estimate, lambda look: "too_small" in look.counts.skips, _one)
    needed = sorted(look.enlargement for look in estimate.sample.found if "too_small" in look.counts.skips)
    if share > MANY:
        half, most = (_up(needed[int(part * (len(needed) - 1))]) for part in (0.5, 0.9))
        admits = most if half == most else f"{half} would admit half and {most}"
        yield (
            f"{share:.0%} of the items are smaller than every bucket: --max-upscale {admits} would admit "
            "nine in ten of them; or add a smaller bucket"
        )


def _repeated(estimate: Estimate) -> Iterator[str]:
    clips = _share(estimate, lambda look: look.repeating, lambda look: look.counts.samples)
    rates = [
        look.fps
        for look in estimate.sample.found
        if look.fps and (look.repeating or "repeated_frames" in look.counts.skips)
    ]
    skips = _share(estimate, lambda look: "repeated_frames" in look.counts.skips, _one)
    too_many = f", and too many for --max-repeats in {skips:.0%} of the items" if skips else ""
    if rates and max(clips, skips) > MANY:
        yield (
            f"--fps {estimate.recipe.fps:g} repeats frames in {clips:.0%} of the clips{too_many}: "
            f"half of those videos have at most {statistics.median_low(rates):.4g} frames per second"
        )


def _cropped(estimate: Estimate) -> Iterator[str]:
    share = _share(
        estimate,
        lambda look: look.counts.samples * (1 - look.least_kept > LARGE_CROP),
        lambda look: look.counts.samples,
    )
    if share > MANY:
        yield (
            f"{share:.0%} of the clips lose more than {LARGE_CROP:.0%} of the picture to the crop: "
            "add buckets nearer to their shape"
        )


def _pictures(estimate: Estimate) -> Iterator[str]:
    """A video too short for the other buckets falls into one of one frame."""

    def stills(look: Look) -> int:
        return 0 if look.is_image else sum(n for (size, _), n in look.clips.items() if size.num_frames == 1)

    share = _share(estimate, stills, lambda look: look.counts.samples)
    if share > MANY:
        yield (
            f"{share:.0%} of the clips are single frames of videos that are too short for other buckets"
            + ("; --windows first takes one of each video" if estimate.recipe.windows != "first" else "")
        )


def _unused(estimate: Estimate) -> Iterator[str]:
    used = estimate.used_buckets
    empty = [str(bucket) for bucket in estimate.recipe.buckets if bucket not in used]
    if empty and used:
        more = f" and {len(empty) - 6} more" if len(empty) > 6 else ""
        yield f"no item that was looked at falls into {', '.join(empty[:6])}{more}"


def _places(estimate: Estimate) -> Iterator[str]:
    if estimate.run.gpus and estimate.used_buckets and set(estimate.recipe.micro_batch) == {1}:
        yield "every micro-batch is 1, which leaves a GPU idle in small buckets: --calibrate proposes sizes"
    if 1 - estimate.filled > MANY:
        yield (
            f"{1 - estimate.filled:.0%} of the micro-batches' places are blank, since each unit fills up its own: "
            "more --unit-clips, fewer buckets or smaller micro-batches"
        )


def _shards(estimate: Estimate) -> Iterator[str]:
    if not estimate.shard_bytes:
        return
    typical = statistics.median(estimate.shard_bytes)
    if estimate.num_shards < 2 or SMALL_SHARD_BYTES <= typical <= LARGE_SHARD_BYTES:
        return
    now = estimate.recipe.unit_clips
    many = min(MOST_UNIT_CLIPS, max(1, round(now * GOOD_SHARD_BYTES / typical)))
    what = f"--unit-clips {many} makes them about {byte_size(typical * many / now)}"
    advice = {format_of(unit).shard_size_advice for stratum in estimate.sample.strata for unit in stratum.units}
    if len(advice) == 1:
        what = advice.pop() or what
    side = "below" if typical < SMALL_SHARD_BYTES else "above"
    yield f"half of the shards are {side} {byte_size(typical)}: {what}"


def _memory(estimate: Estimate) -> Iterator[str]:
    """Of decoding: in one child, and of all clips that wait for an encoder."""
    used, run = estimate.used_buckets, estimate.run
    if not used:
        return
    largest = max(used, key=_pixel_bytes)
    child_bytes = COPIES_IN_A_CHILD * _pixel_bytes(largest)
    if child_bytes > run.decode_memory_bytes:
        yield (
            f"a clip of {largest} takes {byte_size(child_bytes)} to decode and a decoder may take "
            f"{byte_size(run.decode_memory_bytes)}: its clips will be rejects of kind memory"
        )
    waiting = sum(_pixel_bytes(bucket) * estimate.recipe.clips_per_call[bucket] for bucket in used)
    ahead = (run.cpus + 1) * (CLIPS_AHEAD + 1) * _pixel_bytes(largest)
    needed_bytes = UNITS_IN_FLIGHT * (waiting + ahead)
    here_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > here_bytes / 2:
        yield (
            f"an encoder may hold {byte_size(needed_bytes)} of decoded clips, and this machine has "
            f"{byte_size(here_bytes)}: fewer --cpus, smaller micro-batches or smaller buckets take less"
        )


def _too_large(estimate: Estimate, speeds: Speeds | None) -> Iterator[str]:
    for bucket, speed in (speeds or {}).items():
        if speed is None:
            size = estimate.recipe.clips_per_call[bucket]
            yield f"a micro-batch of {size} clips of {bucket} does not fit the VAE's memory: --calibrate finds what does"


def _pixel_bytes(bucket: Bucket) -> int:
    return bucket.num_frames * bucket.height * bucket.width * RGB_BYTES


def _num_rejects(look: Look) -> float:
    return look.counts.rejects.total()


def _one(look: Look) -> float:
    return 1.0


def _up(value: float) -> str:
    """Rounded up to two digits, so that what is said suffices."""
    return f"{-(-value * 100 // 1) / 100:.2f}"

"""The dry run's table: an estimate formatted for people."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator

from pipeline.dry_run.estimate import EncoderSpeeds, Estimate
from pipeline.dry_run.item_estimate import ItemEstimate
from pipeline.dry_run.notes import list_notes
from pipeline.dry_run.sampling import EstimatedTotal
from pipeline.executor.resources.automatic import describe_encoders
from pipeline.progress.advice import skip_meaning
from pipeline.progress.formatting import byte_size, duration, number
from pipeline.recipe import Recipe
from pipeline.sources.formats import format_of
from pipeline.visible import visible

MAX_BUCKET_ROWS, MAX_REASON_ROWS = 25, 8
MAX_EXAMPLES = 3
"""Number of rejected items whose messages are listed."""
WIDTH = 120
"""Width of the table in characters."""


def format_estimate(estimate: Estimate, speeds: EncoderSpeeds | None, speeds_origin: str) -> str:
    """Format what would be encoded, left out and written, the time that it would take, and notes.

    Lines have no invisible characters. ``speeds_origin`` says where the speeds of an encoder come from, for example
    "as just measured on a GPU".
    """
    lines = [f"{estimate.output}  dry run: nothing was written", *_scope(estimate)]
    if estimate.num_left:
        lines += [*_outcomes(estimate), *_examples(estimate), *_costs(estimate, speeds, speeds_origin)]
        lines += [line for sentence in list_notes(estimate, speeds) for line in _wrapped("note", sentence)]
    return "\n".join(map(visible, lines))


def _scope(estimate: Estimate) -> Iterator[str]:
    """Units and items that the numbers cover, and their accuracy."""
    done = estimate.num_units - estimate.num_left
    if not estimate.num_left:
        yield f"  units    {estimate.num_units}, all committed: nothing is left to do"
        return
    committed = f"; {done} of {estimate.num_units} are committed, the numbers cover what is left" if done else ""
    yield f"  units    {estimate.num_left}{committed}"
    sample, num_sampled = estimate.sample, len(estimate.sample.observations)
    if sample.is_complete:
        yield f"  items    {num_sampled:,}, all probed"
        return
    formats = [format_of(unit) for part in sample.formats for unit in part.units[:1]]
    notes = "".join(f", {source_format.sampling_note}" for source_format in formats if source_format.sampling_note)
    num_items, is_estimated = sample.num_items
    yield f"  items    {'about ' if is_estimated else ''}{num_items:,.0f}"
    yield from _wrapped(
        "probed",
        f"{number(num_sampled, 'item')} in {number(len(sample.sampled_units), 'unit')}, drawn at random{notes}; ranges are "
        f"95 % confidence intervals; anything that is not listed occurs in less than {3 / max(1, num_sampled):.1%} of the "
        "items",
    )


def _outcomes(estimate: Estimate) -> Iterator[str]:
    """One row per bucket, skip reason and name of a reject, with its share of all windows."""
    items = estimate.sample.observations
    sizes = sorted({size for item in items for size, _ in item.clips}, key=lambda size: (size.num_frames, size))
    windows = estimate.total(lambda item: item.counts.windows).value
    sections: list[tuple[str, list[tuple[EstimatedTotal, str]]]] = [
        ("buckets", [(estimate.total(_count_clips(str(size))), str(size)) for size in sizes]),
        (
            "skips",
            [
                (estimate.total(_count_skips(name)), _explain_skip(name, estimate.recipe))
                for name in _names(items, "skips")
            ],
        ),
        ("rejects", [(estimate.total(_count_rejects(name)), name) for name in _names(items, "rejects")]),
    ]
    clips = _format_total(estimate.total(lambda item: item.counts.samples))
    about = "" if estimate.sample.is_complete else "about "
    yield f"  clips    {clips} of {about}{windows:,.0f} windows"
    yield f"  captions {_format_total(estimate.total(lambda item: item.counts.captions))} of {clips}"
    for title, rows in sections:
        rows.sort(key=lambda row: -row[0].value)
        shown = rows[: MAX_BUCKET_ROWS if title == "buckets" else MAX_REASON_ROWS]
        for total, name in shown:
            share = total.value / windows
            yield f"  {title:<8} {_format_total(total):<32} {share:>5.1%}  {name}"
            title = ""
        if len(rows) > len(shown):
            yield f"  {'':<8} {'...':<39} {len(rows) - len(shown)} more"


def _examples(estimate: Estimate) -> Iterator[str]:
    messages = [item.reject_message for item in estimate.sample.observations if item.reject_message]
    return (f"  e.g.     {message}"[:WIDTH] for message in messages[:MAX_EXAMPLES])


def _costs(estimate: Estimate, speeds: EncoderSpeeds | None, speeds_origin: str) -> Iterator[str]:
    """Duration of the videos, bytes of the latents, and time of the encoders."""
    footage_s, used_s = estimate.total(lambda item: item.duration_s), estimate.total(lambda item: item.used_s)
    if footage_s.value:
        groups = " of the group that uses most" if len(estimate.recipe.group_names) > 1 else ""
        yield f"  footage  {duration(footage_s.value)}, of which {duration(used_s.value)} in clips{groups}"
    scenes, cut_s = estimate.total(lambda item: item.num_scenes), estimate.total(lambda item: item.cut_s)
    if scenes.value:
        detection_s = estimate.total(lambda item: item.detection_s)
        yield (
            f"  scenes   {_format_total(scenes)}, {duration(cut_s.value)} of video lost to cuts; detection takes "
            f"{duration(detection_s.value)} of one CPU"
        )
    size, shards = estimate.size_bytes, estimate.shard_bytes
    if not shards:
        yield "  latents  none"
        return
    typical = f", half of them above {byte_size(statistics.median(shards))}" if estimate.num_shards > 1 else ""
    spread = "" if estimate.sample.is_complete else f" ({byte_size(size.low)} to {byte_size(size.high)})"
    yield f"  latents  {byte_size(size.value)}{spread} in {number(estimate.num_shards, 'shard')}{typical}"
    yield f"  devices  {describe_encoders(estimate.run)}"
    yield f"  encoding {_format_time(estimate, speeds, speeds_origin)}"


def _format_time(estimate: Estimate, speeds: EncoderSpeeds | None, speeds_origin: str) -> str:
    if speeds is None:
        return "time unknown: give the speed of an encoder with --clips-per-s, or measure it here with --calibrate"
    seconds, run = estimate.encoder_s(speeds), estimate.run
    if seconds is None:
        return "time unknown: a micro-batch does not fit in memory"
    cost = (
        f"{seconds / 3600 * run.encoder_gpus:.2g} GPU-hours"
        if run.encoder_gpus
        else f"{duration(seconds)} of an encoder on the CPU"
    )
    parallel = (
        f", {duration(seconds / run.max_encoders)} on {run.max_encoders} encoders" if run.max_encoders > 1 else ""
    )
    return f"{cost}{parallel}, {speeds_origin}; decoding is not included"


def _wrapped(title: str, sentence: str) -> list[str]:
    indent = f"  {title:<8} "
    return textwrap.wrap(
        visible(sentence), WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def _names(items: list[ItemEstimate], field: str) -> list[str]:
    counts: Counter[str] = sum((getattr(item.counts, field) for item in items), Counter())
    return sorted(counts)


def _count_clips(size: str) -> Callable[[ItemEstimate], float]:
    return lambda item: sum(n for (own, _), n in item.clips.items() if str(own) == size)


def _count_skips(reason: str) -> Callable[[ItemEstimate], float]:
    return lambda item: item.counts.skips[reason]


def _count_rejects(name: str) -> Callable[[ItemEstimate], float]:
    return lambda item: item.counts.rejects[name]


def _explain_skip(reason: str, recipe: Recipe) -> str:
    """Name a skip reason and explain it with the recipe's values."""
    meanings = {
        "too_short": "fewer frames than every bucket of its size",
        "too_small": f"smaller than every bucket, with --max-upscale {recipe.max_upscale:g}",
        "remainder": "frames left over after the last full clip",
        "repeated_frames": f"a larger share of repeated frames than --max-repeats {recipe.max_repeats:g}",
    }
    return f"{reason}: {meanings.get(reason) or skip_meaning(reason)}"


def _format_total(total: EstimatedTotal) -> str:
    """Format an estimate with its range; without a range if it is exact."""
    if total.low == total.high:
        return f"{total.value:,.0f}"
    return f"{total.value:,.0f} ({total.low:,.0f} to {total.high:,.0f})"

"""An estimate as a table for people."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator

from pipeline.dry_run.estimate import Estimate, Look, Speeds
from pipeline.dry_run.notes import concerns
from pipeline.dry_run.sampling import Total
from pipeline.progress.formatting import byte_size, duration
from pipeline.recipe import Recipe
from pipeline.sources.formats import format_of

MOST_BUCKETS, MOST_ROWS = 25, 8
EXAMPLES = 3
WIDTH = 120


def bill(estimate: Estimate, speeds: Speeds | None, speeds_are: str) -> str:
    """What would be encoded, left out and written, what it would cost, and what to know before.

    ``speeds_are``: where the speeds of an encoder come from.
    """
    lines = [f"{estimate.output}  dry run: nothing was written", *_scope(estimate)]
    if estimate.num_left:
        lines += [*_outcomes(estimate), *_examples(estimate), *_costs(estimate, speeds, speeds_are)]
        lines += [_wrapped("note", sentence) for sentence in concerns(estimate, speeds)]
    return "\n".join(lines)


def _scope(estimate: Estimate) -> Iterator[str]:
    """What the figures are about, and how sure they are."""
    done = estimate.num_units - estimate.num_left
    if not estimate.num_left:
        yield f"  units    {estimate.num_units}, all of them committed: nothing is left to do"
        return
    begun = f"; {done} of {estimate.num_units} are committed, the figures are of what is left" if done else ""
    yield f"  units    {estimate.num_left}{begun}"
    sample, looked = estimate.sample, len(estimate.sample.found)
    if sample.exact:
        yield f"  items    {looked:,}, all looked at"
        return
    formats = (format_of(unit) for stratum in sample.strata for unit in stratum.units[:1])
    notes = "".join(f", {each.sampling_note}" for each in formats if each.sampling_note)
    num_items, guessed = sample.num_items
    yield f"  items    {'about ' if guessed else ''}{num_items:,.0f}"
    yield _wrapped(
        "looked",
        f"at {looked:,} items in {len(sample.visits):,} units, drawn at random{notes}; ranges hold with 95 % confidence, "
        f"and what was not seen is below {3 / max(1, looked):.1%} of the items",
    )


def _outcomes(estimate: Estimate) -> Iterator[str]:
    """A row per bucket, reason and kind."""
    looks = estimate.sample.found
    sizes = sorted({size for look in looks for size, _ in look.clips}, key=lambda size: (size.num_frames, size))
    all_of_it = estimate.total(lambda look: look.counts.windows).value
    groups: list[tuple[str, list[tuple[Total, str]]]] = [
        ("buckets", [(estimate.total(_clips_of(str(size))), str(size)) for size in sizes]),
        (
            "skips",
            [(estimate.total(_skips_of(name)), _explained(name, estimate.recipe)) for name in _names(looks, "skips")],
        ),
        ("rejects", [(estimate.total(_rejects_of(name)), name) for name in _names(looks, "rejects")]),
    ]
    yield f"  clips    {_total(estimate, lambda look: look.counts.samples)}"
    for title, rows in groups:
        rows.sort(key=lambda row: -row[0].value)
        shown = rows[: MOST_BUCKETS if title == "buckets" else MOST_ROWS]
        for total, name in shown:
            share = total.value / all_of_it
            yield f"  {title:<8} {_count(total):<32} {share:>5.1%}  {name}"
            title = ""
        if len(rows) > len(shown):
            yield f"  {'':<8} {'...':<39} {len(rows) - len(shown)} more"


def _examples(estimate: Estimate) -> Iterator[str]:
    faults = [look.fault for look in estimate.sample.found if look.fault]
    return (f"  e.g.     {fault}"[:WIDTH] for fault in faults[:EXAMPLES])


def _costs(estimate: Estimate, speeds: Speeds | None, speeds_are: str) -> Iterator[str]:
    footage_s, used_s = estimate.total(lambda look: look.duration_s), estimate.total(lambda look: look.clips_s)
    if footage_s.value:
        yield f"  footage  {duration(footage_s.value)}, of which {duration(used_s.value)} in clips"
    size, shards = estimate.size_bytes, estimate.shard_bytes
    if not shards:
        yield "  latents  none"
        return
    shards_are = "shard" if estimate.num_shards == 1 else "shards"
    typical = f", half of them above {byte_size(statistics.median(shards))}" if estimate.num_shards > 1 else ""
    spread = "" if estimate.sample.exact else f" ({byte_size(size.low)} to {byte_size(size.high)})"
    yield f"  latents  {byte_size(size.value)}{spread} in {estimate.num_shards:,} {shards_are}{typical}"
    yield f"  encoding {_encoding(estimate, speeds, speeds_are)}"


def _encoding(estimate: Estimate, speeds: Speeds | None, speeds_are: str) -> str:
    if speeds is None:
        return "unknown time: say how fast an encoder is (--clips-per-s), or measure it here (--calibrate)"
    seconds, run = estimate.encoder_s(speeds), estimate.run
    if seconds is None:
        return "unknown time: a micro-batch does not fit the memory"
    cost = f"{seconds / 3600 * run.gpus:.2g} GPU-hours" if run.gpus else f"{duration(seconds)} of an encoder on the CPU"
    beside = f", {duration(seconds / run.actors)} on {run.actors} encoders" if run.actors > 1 else ""
    return f"{cost}{beside}; {speeds_are}, decoding not counted"


def _wrapped(title: str, sentence: str) -> str:
    indent = f"  {title:<8} "
    return textwrap.fill(
        sentence, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def _names(looks: list[Look], field: str) -> list[str]:
    counts: Counter[str] = sum((getattr(look.counts, field) for look in looks), Counter())
    return sorted(counts)


def _clips_of(size: str) -> Callable[[Look], float]:
    return lambda look: sum(n for (own, _), n in look.clips.items() if str(own) == size)


def _skips_of(reason: str) -> Callable[[Look], float]:
    return lambda look: look.counts.skips[reason]


def _rejects_of(name: str) -> Callable[[Look], float]:
    return lambda look: look.counts.rejects[name]


def _explained(reason: str, recipe: Recipe) -> str:
    meanings = {
        "too_short": "fewer frames than every bucket of its size",
        "too_small": f"would be enlarged more than --max-upscale {recipe.max_upscale:g}",
        "remainder": "frames after the last whole clip",
        "repeated_frames": f"more than --max-repeats {recipe.max_repeats:g} of the frames would be there twice",
    }
    return f"{reason}: {meanings[reason]}"


def _total(estimate: Estimate, measure: Callable[[Look], float]) -> str:
    return _count(estimate.total(measure))


def _count(total: Total) -> str:
    if total.low == total.high:
        return f"{total.value:,.0f}"
    return f"{total.value:,.0f} ({total.low:,.0f} to {total.high:,.0f})"

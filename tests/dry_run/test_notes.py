"""Notes on an estimate."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.dry_run.estimate import parse_speeds
from pipeline.dry_run.item_estimate import ItemEstimate
from pipeline.dry_run.notes import list_notes
from pipeline.output.counts import Counts
from pipeline.recipe import Recipe, Run
from tests.dry_run.estimates import make_estimate

A, B, STILL = Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 56)


def clip(bucket: Bucket = A, number: int = 1, size_bytes: int | None = None, **fields: Any) -> ItemEstimate:
    counts = Counts(samples=number, captions=number, size_bytes=size_bytes or 50_000_000 * number)
    return ItemEstimate(clips=Counter({(bucket, bucket): number}), counts=counts, **fields)


def reject(name: str) -> ItemEstimate:
    return ItemEstimate(counts=Counts(rejects=Counter([name])))


def skip(reason: str, **fields: Any) -> ItemEstimate:
    return ItemEstimate(counts=Counts(skips=Counter([reason])), group_skips=Counter([("", reason)]), **fields)


@pytest.mark.parametrize(
    ("items", "changes", "note"),
    [
        (
            [clip()] + [skip("too_short", num_frames=n) for n in (5, 9, 11)],
            {},
            "at most 9 frames: add a bucket with fewer",
        ),
        (
            [clip()] + [skip("too_small", upscale={"": 1 + n / 10}) for n in range(1, 11)],
            {},
            "--max-upscale 1.50 would admit half and 1.90 would admit nine in ten",
        ),
        (
            [
                clip(dataclasses.replace(A, group="low")),
                ItemEstimate(group_skips=Counter([("high", "too_small")]), upscale={"low": 0.5, "high": 1.25}),
            ],
            {"buckets": (dataclasses.replace(A, group="low"), dataclasses.replace(B, group="high"))},
            "50% of the items are smaller than every bucket of group high: --max-upscale 1.25 would admit nine in ten",
        ),
        ([clip(fps=15.0, repeating_clips=1)], {"fps": 24.0}, "--fps 24 repeats frames in 100% of the clips"),
        ([clip(min_kept_share=0.5)], {}, "100% of the clips lose more than 40% of the picture"),
        ([clip(STILL, 9)], {"buckets": (A, STILL), "windows": "all"}, "single frames of videos.*--windows first"),
        ([clip()], {}, "no sampled item falls into 32x56x17"),
        ([clip()], {"gpus": 1.0}, "every micro-batch is 1, which leaves a GPU idle"),
        ([clip()], {"micro_batch": (8, 8)}, "88% of the slots of micro-batches are padding"),
        ([clip(size_bytes=100_000)], {"unit_clips": 128}, "below 102 kB: --unit-clips 4096 makes them about 3.28 MB"),
        ([clip(size_bytes=9_000_000_000)], {"unit_clips": 128}, "above 9 GB: --unit-clips 7 "),
        (
            [reject("probe/empty")] * 250 + [clip()],
            {"max_rejects": 0.05},
            "stop with exit code 3",
        ),
        (
            [clip(Bucket(801, 1080, 1920))],
            {"buckets": (Bucket(801, 1080, 1920), A)},
            r"raise --decode-memory-gb, or its clips become rejects \(decode/memory\)",
        ),
        ([clip(Bucket(801, 1080, 1920))], {"buckets": (Bucket(801, 1080, 1920), A), "cpus": 64}, "an encoder may hold"),
    ],
)
def test_a_note_names_the_problem_and_what_to_do(
    recipe: Recipe, run: Run, items: list[ItemEstimate], changes: dict[str, Any], note: str
) -> None:
    of_run = {name: changes.pop(name) for name in ("gpus", "max_rejects", "cpus") if name in changes}
    recipe, run = dataclasses.replace(recipe, **changes), dataclasses.replace(run, **of_run)
    notes = "\n".join(list_notes(make_estimate(recipe, run, items), None))
    assert re.search(note, notes), notes


def test_a_good_job_has_no_notes(recipe: Recipe, run: Run) -> None:
    result = make_estimate(recipe, run, [clip(A, 5), clip(B, 5)])
    assert list_notes(result, {A: 1.0, B: 2.0}) == []
    (note,) = list_notes(result, {A: None, B: 2.0})
    assert note.startswith(f"a micro-batch of 1 clip of {A} does not fit")
    assert result.encoder_s(parse_speeds(recipe, [0.5])) == pytest.approx(10 / 0.5)
    assert result.encoder_s({A: None, B: 2.0}) is None

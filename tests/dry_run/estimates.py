"""Estimates made by hand."""

from __future__ import annotations

from collections import Counter

from pipeline.dry_run.estimate import Estimate
from pipeline.dry_run.item_estimate import ItemEstimate
from pipeline.dry_run.sampling import FormatSample, Sample, SampledUnit
from pipeline.recipe import Recipe, Run
from pipeline.sources.units import Unit


def make_unit(name: str, count: int) -> Unit:
    return Unit(name=name, source="s", format="folder", generation=0, start=0, stop=count)


def make_estimate(recipe: Recipe, run: Run, items: list[ItemEstimate]) -> Estimate:
    """Return an estimate whose sample is one complete unit with these items."""
    unit = make_unit("u", len(items))
    sampled = SampledUnit(unit=unit, num_items=len(items), observations=items)
    return Estimate(
        sources=[],
        output="out",
        recipe=recipe,
        run=run,
        num_units=2,
        num_left=2,
        sample=Sample(formats=[FormatSample(units=[unit], sampled_units=[sampled])]),
        unit_clips=[sum((item.clips for item in items), Counter())],
        unit_bytes=[sum(item.counts.size_bytes for item in items)],
    )

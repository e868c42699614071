"""Totals estimated from a sample."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dry_run.sampling import FormatSample, Sample, SampledUnit
from tests.dry_run.estimates import make_unit


@pytest.mark.parametrize(("num_units", "num_sampled"), [(400, 50), (12, 12)], ids=["some units", "every unit"])
def test_confidence_intervals_hold_the_truth_in_95_percent_of_the_samples(num_units: int, num_sampled: int) -> None:
    """200 samples of one population of unequal units whose items resemble each other."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 60, num_units)
    population = [generator.poisson(generator.gamma(2.0), size).tolist() for size in sizes]
    units = [make_unit(f"u{i}", int(size)) for i, size in enumerate(sizes)]
    truth, held, values = sum(map(sum, population)), 0, []
    for _ in range(200):
        chosen = generator.choice(num_units, num_sampled, replace=False)
        sampled_units = [
            SampledUnit(
                unit=units[i],
                num_items=len(population[i]),
                observations=generator.choice(population[i], 4, False).tolist(),
            )
            for i in chosen
        ]
        total = Sample(formats=[FormatSample(units=units, sampled_units=sampled_units)]).total(float)
        held += total.low <= truth <= total.high
        values.append(total.value)
    assert np.mean(values) == pytest.approx(truth, rel=0.03), "the estimate has next to no bias"
    assert 0.9 <= held / 200 <= 0.99


def test_a_complete_sample_has_no_range() -> None:
    units = [make_unit("a", 3), make_unit("b", 2)]
    sampled_units = [
        SampledUnit(unit=units[0], num_items=3, observations=[1, 2, 3]),
        SampledUnit(unit=units[1], num_items=2, observations=[4, 5]),
    ]
    total = Sample(formats=[FormatSample(units=units, sampled_units=sampled_units)]).total(float)
    assert (total.value, total.low, total.high) == (15, 15, 15)

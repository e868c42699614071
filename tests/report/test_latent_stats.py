"""Statistics of latents: exact over many units, and a wrong shift or scale is noticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.output.index import OutputTotals
from pipeline.report.dataset_stats import collect_stats
from pipeline.report.latent_stats import LatentStatistics, latent_statistics
from pipeline.report.notices import list_notices
from pipeline.report.page import render
from pipeline.storage.store import Store
from stvae import Card
from tests.report.pages import text_of


def facts_of(latents: np.ndarray, clips: int = 1) -> dict[str, str]:
    """Return what unit metadata says about latents [C, values]."""
    return {
        "num_samples": str(clips),
        "latent_count": str(latents.shape[1]),
        "latent_sum": json.dumps(latents.sum(axis=1).tolist()),
        "latent_sum_of_squares": json.dumps(np.square(latents).sum(axis=1).tolist()),
    }


def test_statistics_of_many_units_are_those_of_all_their_values() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal([[0.0], [300.0]], [[1.0], [0.01]], (2, n)) for n in generator.integers(1, 5000, 50)]
    empty = facts_of(np.zeros((2, 0)), clips=0)
    totals = OutputTotals()
    for facts in [empty, *map(facts_of, parts), empty]:
        totals.add(facts)
    statistics = latent_statistics(totals)
    together = np.concatenate(parts, axis=1)
    assert statistics is not None and statistics.values_per_channel == together.shape[1] and statistics.clips == 50
    assert np.allclose(statistics.mean, together.mean(axis=1), rtol=1e-12, atol=1e-12)
    assert np.allclose(statistics.std, together.std(axis=1), rtol=1e-6)
    nothing = OutputTotals()
    nothing.add(empty)
    assert latent_statistics(nothing) is None


@pytest.mark.parametrize(
    ("clips", "mean", "std", "odd"),
    [(100, 0.1, 1.1, []), (100, 1.5, 1.0, [1]), (100, 0.0, 0.1, [1]), (100, 0.0, 5.0, [1]), (99, 9.0, 9.0, [])],
)
def test_a_shift_or_scale_that_cannot_be_right_is_noticed(
    tiny_card: Card, output: Path, clips: int, mean: float, std: float, odd: list[int]
) -> None:
    card = dataclasses.replace(tiny_card, latent_channels=2, shift=(0.0, 10.0), scale=(1.0, 0.5))
    raw = LatentStatistics(clips=clips, values_per_channel=9, mean=(0.0, 10 + mean * 2), std=(1.0, std * 2))
    assert raw.odd_channels(card) == odd
    stats = collect_stats(Store(str(output)))
    stats.latents, stats.dataset = raw, dataclasses.replace(stats.dataset, card=card)
    assert ("Normalized latents of channel 1 are far" in " ".join(list_notices(stats))) == bool(odd)


def test_a_vae_with_statistics_per_latent_frame_gets_raw_ones_only(tiny_card: Card, output: Path) -> None:
    frames = dataclasses.replace(tiny_card, latent_channels=1, shift=((0.0, 1.0),), scale=((1.0, 1.0),))
    raw = LatentStatistics(clips=1000, values_per_channel=9, mean=(50.0,), std=(0.0,))
    assert raw.normalized(frames) is None and raw.odd_channels(frames) == []
    assert json.loads(raw.shift_and_scale) == {"shift": [50.0], "scale": [None]}
    stats = collect_stats(Store(str(output)))
    stats.latents, stats.dataset = raw, dataclasses.replace(stats.dataset, card=frames)
    text = text_of(render(stats, [], []))
    assert (
        "differ from latent frame to latent frame" in text and "norm. mean" not in text and "0 50.0000 0.0000" in text
    )

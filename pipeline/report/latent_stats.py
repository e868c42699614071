"""Mean and standard deviation of an output's latents per channel, from its totals."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from pipeline.output.index import OutputTotals
from stvae.card import Card

JUDGED_AFTER_CLIPS = 100
MOST_MEAN, LEAST_STD, MOST_STD = 1.0, 0.5, 2.0
"""Normalised latents of published models are within these on ordinary video; a wrong shift or scale is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentStatistics:
    """Of the stored mean of the posterior, raw, over every sample. The posterior's own variance is not in it."""

    clips: int
    values_per_channel: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, card: Card) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation after ``(raw - shift) * scale``; None where the VAE has those per latent frame."""
        pairs = list(zip(card.shift, card.scale, strict=True))
        if any(isinstance(shift, tuple) or isinstance(scale, tuple) for shift, scale in pairs):
            return None
        mean = tuple((m - shift) * scale for m, (shift, scale) in zip(self.mean, pairs, strict=True))  # type: ignore[operator]
        std = tuple(s * abs(scale) for s, (_, scale) in zip(self.std, pairs, strict=True))  # type: ignore[arg-type]
        return mean, std

    def odd_channels(self, card: Card) -> list[int]:
        """Channels whose normalised latents are far from mean 0 and standard deviation 1; none where too few clips tell."""
        normalised = self.normalised(card)
        if normalised is None or self.clips < JUDGED_AFTER_CLIPS:
            return []
        pairs = enumerate(zip(*normalised, strict=True))
        return [c for c, (mean, std) in pairs if abs(mean) > MOST_MEAN or not LEAST_STD <= std <= MOST_STD]

    @property
    def shift_and_scale(self) -> str:
        """JSON of the shift and scale that would give every channel mean 0 and standard deviation 1 on this set."""
        scale = [1 / std if std else None for std in self.std]
        return json.dumps({"shift": [_short(m) for m in self.mean], "scale": [s and _short(s) for s in scale]})


def latent_statistics(totals: OutputTotals) -> LatentStatistics | None:
    """The statistics that sums over all latents tell; None where there is no sample.

    The variance is the mean of squares minus the square of the mean: its error is about 1e-16 of the mean of squares for
    each unit that was added.
    """
    count = totals.latent_count
    if not count:
        return None
    mean = [value / count for value in totals.latent_sum]
    squares = [value / count for value in totals.latent_sum_of_squares]
    return LatentStatistics(
        clips=totals.num_samples,
        values_per_channel=count,
        mean=tuple(mean),
        std=tuple(math.sqrt(max(square - m * m, 0.0)) for m, square in zip(mean, squares, strict=True)),
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")

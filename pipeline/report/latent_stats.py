"""Mean and standard deviation of an output's latents per channel, from the sums in its metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from pipeline.output.index import OutputTotals
from stvae.card import Card

MIN_CLIPS_TO_JUDGE = 100
"""Number of clips below which statistics say too little about a VAE's shift and scale."""
MAX_ABS_MEAN, MIN_STD, MAX_STD = 1.0, 0.5, 2.0
"""Normalized latents of published models stay within these limits on ordinary video; with a wrong shift or scale they
do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentStatistics:
    """Statistics per channel of the stored posterior means, not normalized, over every sample.

    The posterior's own variance is not included.
    """

    clips: int
    values_per_channel: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalized(self, card: Card) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and standard deviation after ``(raw - shift) * scale``.

        None if the VAE's shift or scale differs from latent frame to latent frame.
        """
        pairs = list(zip(card.shift, card.scale, strict=True))
        if any(isinstance(shift, tuple) or isinstance(scale, tuple) for shift, scale in pairs):
            return None
        mean = tuple((m - shift) * scale for m, (shift, scale) in zip(self.mean, pairs, strict=True))  # type: ignore[operator]
        std = tuple(s * abs(scale) for s, (_, scale) in zip(self.std, pairs, strict=True))  # type: ignore[arg-type]
        return mean, std

    def odd_channels(self, card: Card) -> list[int]:
        """Return the channels whose normalized latents are far from mean 0 and standard deviation 1.

        Empty for fewer than ``MIN_CLIPS_TO_JUDGE`` clips.
        """
        normalized = self.normalized(card)
        if normalized is None or self.clips < MIN_CLIPS_TO_JUDGE:
            return []
        pairs = enumerate(zip(*normalized, strict=True))
        return [c for c, (mean, std) in pairs if abs(mean) > MAX_ABS_MEAN or not MIN_STD <= std <= MAX_STD]

    @property
    def shift_and_scale(self) -> str:
        """JSON of the shift and scale that would give every channel mean 0 and standard deviation 1 on this dataset."""
        scale = [1 / std if std else None for std in self.std]
        return json.dumps(
            {"shift": [_six_digits(m) for m in self.mean], "scale": [s and _six_digits(s) for s in scale]}
        )


def latent_statistics(totals: OutputTotals) -> LatentStatistics | None:
    """Return the statistics that follow from sums over all latents; None if there is no sample.

    The variance is the mean of squares minus the square of the mean. Each added unit contributes a relative error of
    about 1e-16 of the mean of squares.
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


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")

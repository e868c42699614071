"""Scores and camera motion behind a caption, as Open-Sora 1.2 trains with them: a caption becomes several variants.

Its dataset tool appends ``[aesthetic score: 5.5, motion score: 10.0]`` to a caption and leaves each score out with a
probability of 0.2, once and for all. Here every combination is a variant with its probability, and training picks one
for each sample and epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.errors import ConfigError
from pipeline.text.captions.cleaning import CLEANINGS
from pipeline.text.encoder import Variant

DROP_PROBABILITY = 0.2
"""Probability with which Open-Sora's dataset tool leaves out each score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Facts of a clip beside its caption. None: unknown, and not mentioned."""

    aesthetic: float | None = None
    motion: float | None = None
    camera: str | None = None
    """Motion of the camera, such as ``pan_right`` or ``static``."""


def append_scores(caption: str, scores: Scores) -> str:
    """The caption as Open-Sora's dataset tool writes it before it cleans: the camera's motion, then scores in brackets."""
    if scores.camera:
        caption = f"{caption} Camera motion: {scores.camera.replace('_', ' ')}."
    parts = [
        f"{name} score: {value:.1f}"
        for name, value in (("aesthetic", scores.aesthetic), ("motion", scores.motion))
        if value is not None
    ]
    return f"{caption} [{', '.join(parts)}]" if parts else caption


def variants(
    caption: str, scores: Scores, *, clean: str = "none", drop_probability: float = DROP_PROBABILITY
) -> list[Variant]:
    """Every form of a caption in which training sees it, with its probability. They add up to 1.

    Each known score is dropped with ``drop_probability``, independently of the other; the camera's motion stays. The form
    with all scores is the first one. Forms that are equal after cleaning become one, and those that never occur are left
    out. An empty caption stays empty, because it stands for no caption.
    """
    cleaning = CLEANINGS[clean]
    if not caption.strip():
        return [Variant("", 1.0)]
    weights: dict[str, float] = {}
    for kept_aesthetic, kept_motion in product(
        _choices(scores.aesthetic, drop_probability), _choices(scores.motion, drop_probability)
    ):
        shown = Scores(
            aesthetic=scores.aesthetic if kept_aesthetic[0] else None,
            motion=scores.motion if kept_motion[0] else None,
            camera=scores.camera,
        )
        text = cleaning(append_scores(caption, shown))
        weights[text] = weights.get(text, 0.0) + kept_aesthetic[1] * kept_motion[1]
    return [Variant(text, weight) for text, weight in weights.items() if weight > 0]


def _choices(score: float | None, drop_probability: float) -> list[tuple[bool, float]]:
    """The cases of a score: True if it is shown, with the probability of each case."""
    if score is None:
        return [(False, 1.0)]
    return [(True, 1 - drop_probability), (False, drop_probability)]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionHandling:
    """The treatment of captions before a family renders them; a ``TextHandling``. Columns that are None are not used."""

    clean: str = "none"
    """Name of a cleaning in ``CLEANINGS``."""
    aesthetic_column: str | None = None
    motion_column: str | None = None
    camera_column: str | None = None
    drop_probability: float = DROP_PROBABILITY

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the samples that ``variants`` reads, beside the caption."""
        return tuple(
            column for column in (self.aesthetic_column, self.motion_column, self.camera_column) if column is not None
        )

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Those of the columns that hold scores."""
        return tuple(column for column in (self.aesthetic_column, self.motion_column) if column is not None)

    def variants(self, caption: str, values: Mapping[str, Any]) -> Sequence[Variant]:
        """The forms of a caption, always in the same order. ``values``: the sample's values by name of the column."""
        scores = Scores(
            aesthetic=_number(values, self.aesthetic_column),
            motion=_number(values, self.motion_column),
            camera=_word(values, self.camera_column),
        )
        return variants(caption, scores, clean=self.clean, drop_probability=self.drop_probability)


class NumberCheck:
    """Finds score columns in which there are values but not one number."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._open = dict.fromkeys(columns)
        """Columns without a number so far, with an example of their values."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Look at one more sample."""
        for column in list(self._open):
            value = row.get(column)
            if value is None or value != value:  # NaN stands for no score
                continue
            if _number(row, column) is None:
                self._open[column] = value
            else:
                del self._open[column]

    def end(self) -> None:
        """Raise ConfigError if a column had values and no number. One without any value only lacks scores."""
        for column, example in self._open.items():
            if example is not None:
                raise ConfigError(f"the column '{column}' has no numbers, for example {example!r}; scores are numbers")


def _number(values: Mapping[str, Any], column: str | None) -> float | None:
    """The finite number of a column; None if there is none."""
    try:
        number = float(values[column]) if column is not None else math.nan
    except (KeyError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _word(values: Mapping[str, Any], column: str | None) -> str | None:
    """The text of a column without white space around it; None if there is none."""
    value = values.get(column) if column is not None else None
    return value.strip() or None if isinstance(value, str) else None

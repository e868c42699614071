"""Which set the batch of each step comes from: a pure function of weights, seed and step, the same on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.loader.schedule.keys import Indices, derive_seed

Weight: TypeAlias = float | Callable[[int, int], float]
"""Share of the steps that a set gets, relative to those of the other sets. A function takes the epoch and the number of
steps since the start of training, both from 0, and nothing else may influence what it returns."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio. Its multiples, modulo 2**64, are spread evenly however few they are."""
STEPS_AT_ONCE = 1 << 16
"""Number of steps whose weights are in memory at one time."""


def check_weights(weights: Mapping[str, Any]) -> dict[str, Weight]:
    """Return the weights as floats and functions. Raises ConfigError, naming the set, for anything else."""
    checked: dict[str, Weight] = {}
    for name, weight in weights.items():
        if callable(weight):
            checked[name] = weight
        elif isinstance(weight, Real) and not isinstance(weight, bool) and 0 < float(weight) < math.inf:
            checked[name] = float(weight)
        else:
            raise ConfigError(
                f"set '{name}': the weight must be a positive number, or a function of epoch and step that returns one, "
                f"got {weight!r}"
            )
    return checked


def draw_sets(weights: Mapping[str, Weight], seed: int, epoch: int, num_steps: int) -> Indices:
    """Return the number of the set of each step of an epoch, int64 [num_steps].

    Up to any step, each set has had the share that its weight asks for, to within about two steps.
    Raises ConfigError if a function returns no usable weight.
    Source: additive recurrence by the golden ratio, Kuipers and Niederreiter, Uniform Distribution of Sequences, 1974.
    """
    # Shapes: ends is float64 [sets, steps of the block]; points and the draws are [steps of the block].
    # Invariant: step s draws set k where points[s] lies in [ends[k - 1, s], ends[k, s]), which is empty for weight 0.
    # Example: weights 1 and 3 -> ends 1 and 4; the point 0.7 draws set 0, the point 2.5 draws set 1.
    blocks = [np.zeros(0, dtype=np.int64)]
    for start in range(epoch * num_steps, (epoch + 1) * num_steps, STEPS_AT_ONCE):
        steps = range(start, min(start + STEPS_AT_ONCE, (epoch + 1) * num_steps))
        ends = np.cumsum([values_of_weight(name, weight, epoch, steps) for name, weight in weights.items()], axis=0)
        if not (ends[-1] > 0).all():
            step = steps[int(np.argmin(ends[-1]))]
            raise ConfigError(f"all weights are 0 in step {step} since the start of training (epoch {epoch})")
        turns = derive_seed(seed, "sets") + np.arange(steps.start, steps.stop, dtype=np.uint64) * GOLDEN
        points = (turns >> np.uint64(11)).astype(np.float64) * 2.0**-53 * ends[-1]
        blocks.append((points >= ends[:-1]).sum(axis=0, dtype=np.int64))
    return np.concatenate(blocks)


def values_of_weight(name: str, weight: Weight, epoch: int, steps: range) -> npt.NDArray[np.float64]:
    """Return the weight of a set in some steps, which are counted from the start of training."""
    if not callable(weight):
        return np.full(len(steps), weight, dtype=np.float64)
    try:
        values = np.array([float(weight(epoch, step)) for step in steps], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"set '{name}': the function of its weight must take epoch and step, and return a number: {error}"
        ) from error
    unusable = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(unusable):
        raise ConfigError(
            f"set '{name}': the weight of step {steps[unusable[0]]} since the start of training (epoch {epoch}) is "
            f"{values[unusable[0]]}; weights must be finite and at least 0"
        )
    return values

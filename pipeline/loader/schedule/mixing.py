"""Mixing of bucket groups by weight: the group of every step is drawn, and is the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.loader.schedule.epoch import BLANK, EpochSchedule
from pipeline.loader.schedule.keys import Indices, derive_seed
from pipeline.loader.schedule.policy import BatchPolicy


def mix_groups(groups: Mapping[str, EpochSchedule], policy: BatchPolicy, seed: int, epoch: int) -> EpochSchedule:
    """Join the schedules of groups into one, in which every step is the next step of a group drawn by weight.

    No sample comes twice: the epoch ends when a group is drawn that has no steps left, and ``dropped`` counts the samples
    that are left. With ``tail="repeat"`` such a group begins again, and the epoch ends when all groups have had their
    steps; ``repeated`` counts the samples that came again. Raises ConfigError for a group without a whole step.
    """
    # Shapes: draws is int64 [steps], the group of each step; bounds is int64 [steps, world_size + 1].
    # Invariant: the k-th step of group g in the result is step k of its own schedule, modulo its length.
    # Example: groups of 3 and 1 steps, draws [0 0 1 0 1 ...] -> steps 0 1 | 0 | 2, and the second draw of group 1 ends it.
    for name, schedule in groups.items():
        if not len(schedule):
            raise ConfigError(
                f"groups: the {schedule.dropped} samples of group '{name}' fill no step: leave the group out, "
                "use smaller batches, or tail='repeat'"
            )
    lengths = np.array([len(schedule) for schedule in groups.values()])
    draws = _draw_steps(lengths, policy, seed, epoch)
    bounds = np.empty((len(draws), policy.world_size + 1), dtype=np.int64)
    offset = dropped = padded = repeated = 0
    for number, schedule in enumerate(groups.values()):
        chosen = np.flatnonzero(draws == number)
        bounds[chosen] = offset + schedule.bounds[np.arange(len(chosen)) % len(schedule)]
        offset += len(schedule.rows)
        sizes, blanks = _sizes(schedule)
        dropped += schedule.dropped + int((sizes - blanks)[len(chosen) :].sum())
        padded += int(blanks[: len(chosen)].sum())
        times_again = np.bincount(np.arange(len(schedule), len(chosen)) % len(schedule), minlength=len(schedule))
        repeated += schedule.repeated + int((times_again * sizes).sum())
    rows = np.concatenate([schedule.rows for schedule in groups.values()])
    return EpochSchedule(rows=rows, bounds=bounds, dropped=dropped, padded=padded, repeated=repeated)


def _draw_steps(lengths: Indices, policy: BatchPolicy, seed: int, epoch: int) -> Indices:
    """Return the group of each step, int64 [steps], by weight, up to the end of the epoch.

    lengths: int64 [groups], number of steps of each group.
    """
    weights = np.cumsum([weight for _, weight in policy.groups])
    rng = np.random.Generator(np.random.Philox(key=int(derive_seed(seed, epoch if policy.shuffle else 0, "groups"))))
    draws = np.zeros(0, dtype=np.int64)
    while True:  # once, unless groups are repeated: with more draws than steps, some group runs out
        count = int(lengths.sum()) + 1 + len(draws)
        more = np.searchsorted(weights, rng.random(count) * weights[-1], side="right")
        draws = np.concatenate([draws, np.minimum(more, len(weights) - 1)])
        places = [np.flatnonzero(draws == number) for number in range(len(lengths))]
        if policy.tail == "repeat":
            if all(len(of_group) >= length for of_group, length in zip(places, lengths, strict=True)):
                last = max(of_group[length - 1] for of_group, length in zip(places, lengths, strict=True))
                return draws[: last + 1]
        elif ends := [
            of_group[length] for of_group, length in zip(places, lengths, strict=True) if len(of_group) > length
        ]:
            return draws[: min(ends)]


def _sizes(schedule: EpochSchedule) -> tuple[Indices, Indices]:
    """Return the number of places and of blank places in every step of a schedule, over all ranks."""
    starts, ends = schedule.bounds[:, 0], schedule.bounds[:, -1]
    blanks_before: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(schedule.rows == BLANK)])
    return ends - starts, blanks_before[ends] - blanks_before[starts]

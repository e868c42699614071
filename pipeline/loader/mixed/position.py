"""The position of a training run in several sets: its own epoch and step, and those of every set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.loop import Position
from pipeline.loader.mixed.weights import Weight, draw_sets, values_of_weight
from pipeline.loader.schedule.keys import Indices, short_digest
from pipeline.loader.state import LoaderState

MIXED_STATE_VERSION = 1
"""Version of what ``state_dict`` returns. A state of another version is refused."""
EPOCHS_KEPT = 2
"""Number of epochs whose start is remembered. A DataLoader's workers may be one epoch ahead of training."""

ANOTHER_MIX = (
    "Resume with the same sets, weights and options. To go on with others, begin the next epoch: "
    "load_state_dict(state, new_epoch=True)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPosition:
    """One of the sets, and the position in it."""

    name: str
    weight: Weight
    state: LoaderState
    first_index: int
    """Number of the set's first sample among those of all sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochStart:
    """Positions of all sets at a step of an epoch."""

    step: int
    positions: list[tuple[int, int]]
    """Epoch and step of every set."""


class MixedPosition(Position):
    """The position in an epoch of several sets. A set that has had all its steps begins its own next epoch."""

    def __init__(self, sets: Sequence[SetPosition], seed: int, steps_per_epoch: int | None) -> None:
        """steps_per_epoch: None for the steps that all sets have in their first epochs."""
        super().__init__()
        # an order that follows from the samples: neither that of the sets nor their paths change what is drawn
        self.sets = sorted(sets, key=lambda one: one.state.describe_schedule())
        self.seed = seed
        self._steps_per_epoch = steps_per_epoch
        self._length = steps_per_epoch
        self._starts = {0: EpochStart(step=0, positions=[(0, 0)] * len(sets))}
        """Known positions by epoch, of the last ``EPOCHS_KEPT`` epochs."""
        self._draws: dict[int, tuple[Indices, str]] = {}
        """The sets drawn in an epoch, and 8 hex digits that stand for them."""

    def __len__(self) -> int:
        if self._length is None:
            lengths = {one.name: one.state.steps_in(0) for one in self.sets}
            for one in self.sets:
                if not lengths[one.name]:
                    raise _no_steps(one)
            self._length = sum(lengths.values())
        return self._length

    def draws(self, epoch: int) -> Indices:
        """Return the number of the set of each step of an epoch, int64 [steps]."""
        return self._cached_draws(epoch)[0]

    def _cached_draws(self, epoch: int) -> tuple[Indices, str]:
        if epoch not in self._draws:
            draws = draw_sets(self._weights(), self.seed, epoch, len(self))
            self._draws[epoch] = (draws, short_digest(draws.tobytes()))
            _keep_newest(self._draws)
        return self._draws[epoch]

    def move_to(self, epoch: int, step: int) -> None:
        """Move to a step of an epoch. Every set moves to where it is when training gets there."""
        at_end = (epoch, step) == (self.epoch + 1, 0) and self.step == len(self)
        positions = self._positions() if at_end else self._positions_at(epoch, step)
        for one, position in zip(self.sets, positions, strict=True):
            one.state.move_to(*position)
        self.epoch, self.step = epoch, step
        self._starts.pop(epoch, None)
        self._starts[epoch] = EpochStart(step=step, positions=positions)
        _keep_newest(self._starts)

    def take(self, rank: int) -> list[tuple[int, int]]:
        one = self.sets[self.draws(self.epoch)[self.step]]
        if not len(one.state):
            raise _no_steps(one)
        taken = one.state.take(rank)
        one.state.roll_over()
        self.step += 1
        return [(one.first_index + row, epoch) for row, epoch in taken]

    def describe_schedule(self) -> str:
        weights = [values_of_weight(one.name, one.weight, 0, range(1)).tolist() for one in self.sets]
        sets = " and ".join(one.state.describe_schedule() for one in self.sets)
        return f"weights={short_digest(repr(weights))} steps_per_epoch={self._steps_per_epoch} of {sets}"

    def describe_empty(self) -> str:
        return "No set has a step"

    def describe_untrained(self) -> str | None:
        notes = [(one.name, one.state.describe_untrained()) for one in self.sets]
        return " ".join(f"Set '{name}': {note}." for name, note in notes if note) or None

    def state_dict(self) -> dict[str, Any]:
        return self._state_of(self.epoch, self.step, [one.state.state_dict() for one in self.sets])

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        positions = self._positions_at(epoch, step)
        states = [one.state.state_at(*position) for one, position in zip(self.sets, positions, strict=True)]
        return self._state_of(epoch, step, states)

    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Move to a saved position. Raises ConfigError, naming what differs, if it belongs to another schedule.

        new_epoch: begin the next epoch. Sets whose own schedule is that of the state go on where they were, others begin
        their next epoch, and sets that the state does not have begin their first.
        """
        if state.get("version") != MIXED_STATE_VERSION or "sets" not in state:
            raise ConfigError(
                "this is not a loader state of several sets that this program can read: it has version "
                f"{state.get('version')}{'' if 'sets' in state else ' and belongs to one set'}, expected "
                f"{MIXED_STATE_VERSION}. Resume with the sets and the program that saved it, or start without the state"
            )
        if state["seed"] != self.seed:
            raise ConfigError(f"the seed is {self.seed}, but that of the loader state is {state['seed']}; use the same")
        if new_epoch:
            self._begin_next_epoch(state)
            return
        self.sets = self._ordered_as(state)
        epoch, step = int(state["epoch"]), int(state["step"])
        for one, saved in zip(self.sets, state["sets"], strict=True):
            one.state.load_state_dict(saved)
        self._length = int(state["length"])
        self._restart(epoch, step)

    def _ordered_as(self, state: dict[str, Any]) -> list[SetPosition]:
        """Return the sets in the order of those of a state.

        Raises ConfigError, naming what differs, unless they are the same and are drawn in the same way in its epoch.
        """
        saved_sets = state["sets"]
        if len(saved_sets) != len(self.sets):
            raise ConfigError(
                f"this loader state has {len(saved_sets)} sets ({', '.join(saved['set'] for saved in saved_sets)}), but "
                f"here are {len(self.sets)} ({', '.join(one.name for one in self.sets)}). {ANOTHER_MIX}"
            )
        ordered = self._in_order_of(saved_sets)
        for one, saved in zip(ordered, saved_sets, strict=True):
            try:
                one.state.check_state(saved)
            except ConfigError as error:
                raise ConfigError(f"set '{one.name}' ('{saved['set']}' in the state): {error}") from None
        if state["steps_per_epoch"] != self._steps_per_epoch:
            raise ConfigError(
                f"this loader state was saved with steps_per_epoch={state['steps_per_epoch']}, but here it is "
                f"{self._steps_per_epoch}. {ANOTHER_MIX}"
            )
        draws = draw_sets(
            {one.name: one.weight for one in ordered}, self.seed, int(state["epoch"]), int(state["length"])
        )
        if short_digest(draws.tobytes()) != state["draws"]:
            raise ConfigError(
                f"this loader state was saved with other weights: {self._describe_weights()} choose other sets in "
                f"epoch {state['epoch']}. {ANOTHER_MIX}"
            )
        return ordered

    def _begin_next_epoch(self, state: dict[str, Any]) -> None:
        new = []
        for one in self.sets:
            same = [saved for saved in state["sets"] if _fits(one, saved)]
            changed = [saved for saved in state["sets"] if saved["set"] == one.name]
            if same or changed:
                one.state.load_state_dict((same or changed)[0], new_epoch=not same)
            else:
                new.append(one.name)
                one.state.move_to(0, 0)
        if new:
            warnings.warn(
                f"the loader state has no position of {', '.join(new)}; they begin with epoch 0", stacklevel=4
            )
        self._restart(int(state["epoch"]) + (int(state["step"]) > 0), 0)

    def _in_order_of(self, saved_sets: list[dict[str, Any]]) -> list[SetPosition]:
        """Return the sets in the order of those of a state, as far as they have a match there."""
        rest = list(self.sets)
        ordered = []
        for saved in saved_sets:
            fitting = [one for one in rest if _fits(one, saved)]
            of_same_name = [one for one in rest if one.name == saved["set"]]
            match = (fitting or of_same_name or rest)[0]
            ordered.append(match)
            rest.remove(match)
        return ordered

    def _restart(self, epoch: int, step: int) -> None:
        """Take the positions of the sets for those at a step, and forget all earlier ones."""
        for one in self.sets:
            one.state.roll_over()
        self.epoch, self.step = epoch, step
        self._draws.clear()
        self._starts = {epoch: EpochStart(step=step, positions=self._positions())}

    def _positions(self) -> list[tuple[int, int]]:
        return [(one.state.epoch, one.state.step) for one in self.sets]

    def _positions_at(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """Return the position of every set at a step, counted from the last known one before it."""
        known = {(0, 0): [(0, 0)] * len(self.sets)} | {
            (e, start.step): start.positions for e, start in self._starts.items()
        }
        first_epoch, first_step = max(place for place in known if place <= (epoch, step))
        positions = known[first_epoch, first_step]
        drawn = np.concatenate([self.draws(number) for number in range(first_epoch, epoch + 1)])
        drawn = drawn[first_step : (epoch - first_epoch) * len(self) + step]
        counts = np.bincount(drawn, minlength=len(self.sets)).tolist()
        return [
            one.state.position_after(*position, count)
            for one, position, count in zip(self.sets, positions, counts, strict=True)
        ]

    def _weights(self) -> dict[str, Weight]:
        return {one.name: one.weight for one in self.sets}

    def _describe_weights(self) -> str:
        return ", ".join(f"{one.name} ({'a function' if callable(one.weight) else one.weight})" for one in self.sets)

    def _state_of(self, epoch: int, step: int, states: list[dict[str, Any]]) -> dict[str, Any]:
        sets = [{"set": one.name} | saved for one, saved in zip(self.sets, states, strict=True)]
        return {
            "version": MIXED_STATE_VERSION,
            "seed": self.seed,
            "epoch": epoch,
            "step": step,
            "steps_per_epoch": self._steps_per_epoch,
            "length": len(self),
            "draws": self._cached_draws(epoch)[1],
            "sets": sets,
        }


def _fits(one: SetPosition, saved: dict[str, Any]) -> bool:
    """Return whether a saved position belongs to the schedule of a set."""
    try:
        one.state.check_state(saved)
    except ConfigError:
        return False
    return True


def _no_steps(one: SetPosition) -> ConfigError:
    return ConfigError(f"set '{one.name}': this epoch has no steps. {one.state.describe_empty()}")


def _keep_newest(by_epoch: dict[int, Any]) -> None:
    """Remove the entries that were added first, except the last ``EPOCHS_KEPT``."""
    while len(by_epoch) > EPOCHS_KEPT:
        del by_epoch[next(iter(by_epoch))]

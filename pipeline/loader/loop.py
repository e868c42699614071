"""Epochs of batches in a training loop: how iterations begin, go on and end, for one set or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from pipeline.errors import ConfigError
from pipeline.loader.collation.batch import Batch
from pipeline.loader.options import Loop


class Position(ABC):
    """The place of the next batch: its epoch and its step there."""

    def __init__(self) -> None:
        self.epoch = 0
        self.step = 0
        """Number of batches of this epoch that have been handed out."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of steps in the current epoch."""

    def move_to(self, epoch: int, step: int) -> None:
        """Move to a step of an epoch."""
        self.epoch, self.step = epoch, step

    def set_epoch(self, epoch: int) -> None:
        """Move to the first step of an epoch, unless it is the current one."""
        if epoch < 0:
            raise ConfigError(f"the number of an epoch must be at least 0, got {epoch}")
        if epoch != self.epoch:
            self.move_to(epoch, 0)

    @abstractmethod
    def take(self, rank: int) -> list[tuple[int, int]]:
        """Return the samples of a rank's next batch, each with its epoch, and move behind it within the epoch."""

    @abstractmethod
    def describe_schedule(self) -> str:
        """Name everything that the batches of all ranks depend on."""

    @abstractmethod
    def describe_empty(self) -> str:
        """Say why the current epoch has no steps, and what would help."""

    @abstractmethod
    def describe_untrained(self) -> str | None:
        """Say which samples no epoch trains on; None if there are none."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position as values that JSON can hold."""

    @abstractmethod
    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        """Return what ``state_dict`` returns at a step of an epoch."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Move to a saved position, or with ``new_epoch`` to the first epoch of which the state has seen nothing."""


class EpochLoop(ABC):
    """Batches of one rank, to iterate over once per epoch.

    The next epoch begins when the last batch is handed out. An iteration that is left early is continued by the next one,
    except with ``loop="once"``, which starts every iteration at the first batch.
    """

    def __init__(
        self, position: Position, *, rank: int, world_size: int, loop: Loop, check_ranks: Callable[[], None]
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._position = position
        self._once = loop == "once"
        self._check_ranks = check_ranks
        """Raises ConfigError if the ranks of a job do not make the same batches."""
        self._iteration = 0
        """Number of iterations that have begun. Only the last of them may go on."""
        self._continues = True
        """The next iteration begins at ``step``, also with ``loop="once"``."""

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        return len(self._position)

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next batch, from 0."""
        return self._position.epoch

    @property
    def step(self) -> int:
        """Number of batches of this epoch that have been handed out. After the last one it is 0, in the next epoch."""
        return self._position.step

    def set_epoch(self, epoch: int) -> None:
        """Move to the first batch of an epoch. In the current epoch the position stays, so that a resumed epoch goes on."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch as a few values that JSON can hold, and ``replacements``, if any."""
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Continue at a saved position. Raises ConfigError, naming what differs, if it belongs to another schedule.

        new_epoch: begin the next epoch instead (the state's epoch, if it has seen nothing of it), with the samples, the
        filter and the options of this object, whatever those of the state were. Only the seed must be the same.
        """
        self._position.load_state_dict(state, new_epoch=new_epoch)
        self._continues = True
        if self.step >= len(self):
            self._end_epoch()

    def __iter__(self) -> Generator[Batch]:
        """Iterate over the rest of the current epoch. RuntimeError if an earlier iteration goes on after this one began."""
        if self._once and not self._continues:
            self._position.move_to(self.epoch, 0)
        self._continues = False
        if not len(self):
            raise ConfigError(f"this epoch has no steps. {self._position.describe_empty()}")
        self._iteration += 1
        return self._iterate(self._iteration)

    @abstractmethod
    def _read_epoch(self) -> Generator[Batch]:
        """Yield the batches of the rest of the current epoch."""

    @abstractmethod
    def _pass(self, batch: Batch) -> None:
        """Move behind a batch that ``_read_epoch`` yielded, within the epoch."""

    def _iterate(self, iteration: int) -> Generator[Batch]:
        self._check_ranks()
        epoch, step, length = self.epoch, self.step, len(self)
        self._check_latest(iteration, epoch, step)
        with closing(self._read_epoch()) as batches:
            for batch in batches:
                self._pass(batch)
                step += 1
                if step == length:
                    self._end_epoch()
                yield batch
                if step < length:
                    self._check_latest(iteration, epoch, step)

    def _end_epoch(self) -> None:
        self._position.move_to(self.epoch if self._once else self.epoch + 1, 0)

    def _check_latest(self, iteration: int, epoch: int, step: int) -> None:
        """Raise RuntimeError unless this iteration is the latest and the position is where it left it."""
        if iteration != self._iteration or (epoch, step) != (self.epoch, self.step):
            raise RuntimeError(
                "another loop over these batches has begun, or their position was set, since this loop began. Two loops "
                "at once would each get a part of the samples: make one Batches object for each loop"
            )

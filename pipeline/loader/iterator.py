"""Iterate over the batches of one rank in order, with reads started ahead of time by threads."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.errors import ConfigError
from pipeline.loader.collation.batch import Batch
from pipeline.loader.collation.collator import Collator
from pipeline.loader.collation.pending import BatchBuffer, PendingBatch
from pipeline.loader.options import Loop
from pipeline.loader.readers import Reader, Wait, read_now
from pipeline.loader.schedule.epoch import EpochSchedule
from pipeline.loader.state import LoaderState, Replacement

BLOCKS_AHEAD = 3
"""Number of ``Reader.begin`` calls to start ahead, where one call covers several batches."""


class Batches:
    """The batches of one rank.

    Iterate over it once per epoch. The next epoch begins when the last batch is handed out. An iteration that is left
    early is continued by the next one, except with ``loop="once"``, which starts every iteration at the first batch.
    ``state_dict`` may be called after any batch; loaded into an equal object, it continues with the next batch.
    """

    def __init__(
        self,
        state: LoaderState,
        collator: Collator,
        open_reader: Callable[[], Reader],
        *,
        rank: int,
        world_size: int,
        threads: int,
        loop: Loop,
        check_ranks: Callable[[], None],
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._state = state
        self._collator = collator
        self._open_reader = open_reader
        self._threads = threads
        self._once = loop == "once"
        self._check_ranks = check_ranks
        """Raises ConfigError if the ranks of a job do not make the same batches."""
        self._iteration = 0
        """Number of iterations that have begun. Only the last of them may go on."""
        self._continues = True
        """The next iteration begins at ``step``, also with ``loop="once"``."""
        self._free_buffers: list[BatchBuffer] = []
        if rank == 0 and (note := state.describe_untrained()):
            warnings.warn(note, stacklevel=4)

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        return len(self.schedule())

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next batch, from 0."""
        return self._state.epoch

    @property
    def step(self) -> int:
        """Number of batches of this epoch that have been handed out. After the last one it is 0, in the next epoch."""
        return self._state.step

    @property
    def dropped(self) -> int:
        """Number of samples that this epoch leaves out because they fill no whole step. Each epoch drops others."""
        return self.schedule().dropped

    @property
    def padded(self) -> int:
        """Number of blank places in this epoch, over all ranks."""
        return self.schedule().padded

    @property
    def repeated(self) -> int:
        """Number of places in this epoch, over all ranks, that hold a sample for the second time."""
        return self.schedule().repeated

    @property
    def replacements(self) -> list[Replacement]:
        """The damaged samples that this rank has replaced so far (``on_damage="replace"``)."""
        return list(self._state.replacements)

    def schedule(self) -> EpochSchedule:
        """Return the batches of the current epoch on all ranks, as rows of the samples."""
        return self._state.schedule()

    def set_epoch(self, epoch: int) -> None:
        """Move to the first batch of an epoch. In the current epoch the position stays, so that a resumed epoch goes on."""
        self._state.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch as five values that JSON can hold, and ``replacements`` if there are any."""
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position. Raises ConfigError, naming what differs, if it belongs to another schedule."""
        self._state.load_state_dict(state)
        self._continues = True
        if self._state.step >= len(self.schedule()):
            self._end_epoch()

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the rest of the current epoch. RuntimeError if an earlier iteration goes on after this one began."""
        if self._once and not self._continues:
            self._state.step = 0
        self._continues = False
        if not len(self.schedule()):
            raise ConfigError(f"this epoch has no steps. {self._state.describe_empty()}")
        self._iteration += 1
        return self._iterate(self._iteration)

    def _iterate(self, iteration: int) -> Iterator[Batch]:
        self._check_ranks()
        state, epoch, step = self._state, self.epoch, self.step
        self._check_latest(iteration, epoch, step)
        ahead = _ReadAhead(
            self._collator,
            self._open_reader(),
            self.schedule(),
            epoch=epoch,
            step=step,
            rank=self.rank,
            threads=self._threads,
            free_buffers=self._free_buffers,
        )
        try:
            while (following := ahead.next_batch()) is not None:
                self._check_latest(iteration, epoch, step)
                batch, buffer = following
                state.note_replacements(batch.get("replaced", []), batch["id"])
                step += 1
                state.step = step
                if step == len(ahead):
                    self._end_epoch()
                yield batch
                ahead.free_buffers.append(buffer)
        finally:
            ahead.close()

    def _end_epoch(self) -> None:
        self._state.start_epoch(self.epoch if self._once else self.epoch + 1)

    def _check_latest(self, iteration: int, epoch: int, step: int) -> None:
        """Raise RuntimeError unless this iteration is the latest and the position is where it left it."""
        if iteration != self._iteration or (epoch, step) != (self.epoch, self.step):
            raise RuntimeError(
                "another loop over these batches has begun, or their position was set, since this loop began. Two loops "
                "at once would each get a part of the samples: make one Batches object for each loop"
            )


class _ReadAhead:
    """The batches of one rank in one epoch, some of which are being read."""

    def __init__(
        self,
        collator: Collator,
        reader: Reader,
        schedule: EpochSchedule,
        *,
        epoch: int,
        step: int,
        rank: int,
        threads: int,
        free_buffers: list[BatchBuffer],
    ) -> None:
        self.free_buffers = free_buffers
        self._collator = collator
        self._reader = reader
        self._schedule = schedule
        self._epoch = epoch
        self._next_step = step
        self._rank = rank
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[tuple[BatchBuffer, Future[Batch]]] = deque()
        batch_size = max(len(schedule.batch(0, rank)), 1) if len(schedule) else 1
        self._block = -(-reader.samples_at_once // batch_size)
        """Number of batches in one call of ``Reader.begin``."""
        self._max_pending = threads + 1 if self._block == 1 else BLOCKS_AHEAD * self._block
        self._following_block = 1  # the first batch is read alone, so that it does not wait for others

    def __len__(self) -> int:
        """Number of steps in the epoch."""
        return len(self._schedule)

    def next_batch(self) -> tuple[Batch, BatchBuffer] | None:
        """Return the next batch and the buffer that holds its bytes, or None at the end of the epoch."""
        while self._next_step < len(self._schedule) and len(self._pending) + self._following_block <= self._max_pending:
            self._begin(self._following_block)
            self._following_block = self._block
        if not self._pending:
            return None
        buffer, future = self._pending.popleft()
        return future.result(), buffer

    def close(self) -> None:
        """Cancel what has not begun and wait for the threads."""
        for _, future in self._pending:
            future.cancel()
        self._reader.close()
        self._pool.shutdown()

    def _begin(self, count: int) -> None:
        """Start to read up to ``count`` batches."""
        steps = range(self._next_step, min(self._next_step + count, len(self._schedule)))
        batches = []
        for step in steps:
            buffer = self.free_buffers.pop() if self.free_buffers else self._collator.new_buffer()
            rows, global_rows = self._schedule.batch(step, self._rank), self._schedule.global_batch(step)
            batches.append(self._collator.prepare(rows, global_rows, buffer))
        for batch, wait in zip(batches, self._reader.begin([batch.spans for batch in batches]), strict=True):
            self._pending.append((batch.buffer, self._pool.submit(self._finish, batch, wait)))
        self._next_step = steps.stop

    def _finish(self, batch: PendingBatch, wait: Wait) -> Batch:
        wait()
        return self._collator.finish(batch, self._epoch, partial(read_now, self._reader))

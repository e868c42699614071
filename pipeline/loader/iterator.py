"""Iterate over the batches of one rank in order, with reads started ahead of time by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from pipeline.loader.collation.batch import Batch
from pipeline.loader.collation.collator import Collator
from pipeline.loader.collation.conversion import compute_in_one_thread
from pipeline.loader.collation.pending import BatchBuffer, PendingBatch
from pipeline.loader.loop import EpochLoop
from pipeline.loader.options import Loop
from pipeline.loader.readers import Filled, Reader, begin_one
from pipeline.loader.schedule.epoch import EpochSchedule
from pipeline.loader.state import LoaderState, Replacement

BLOCKS_AHEAD = 3
"""Number of ``Reader.begin`` calls to start ahead, where one call covers several batches."""


class Batches(EpochLoop):
    """The batches of one rank.

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
        super().__init__(state, rank=rank, world_size=world_size, loop=loop, check_ranks=check_ranks)
        self._state = state
        self._collator = collator
        self._open_reader = open_reader
        self._threads = threads
        self._free_buffers: list[BatchBuffer] = []

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

    def _read_epoch(self) -> Generator[Batch]:
        ahead = _ReadAhead(
            self._collator,
            self._open_reader(),
            self.schedule(),
            epoch=self.epoch,
            step=self.step,
            rank=self.rank,
            threads=self._threads,
            free_buffers=self._free_buffers,
        )
        try:
            while (following := ahead.next_batch()) is not None:
                batch, buffer = following
                yield batch
                if self._collator.lends_buffer:
                    ahead.free_buffers.append(buffer)
        finally:
            ahead.close()

    def _pass(self, batch: Batch) -> None:
        self._state.note_replacements(batch.get("replaced", []), batch["id"])
        self._state.step += 1


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
        self._pool = ThreadPoolExecutor(threads, initializer=compute_in_one_thread)
        self._pending: deque[tuple[BatchBuffer, Future[Batch]]] = deque()
        batch_size = max(len(schedule.batch(0, rank)), 1) if len(schedule) else 1
        self._block = -(-reader.samples_at_once // batch_size)
        """Number of batches in one call of ``Reader.begin``."""
        self._max_pending = threads + 1 if self._block == 1 else BLOCKS_AHEAD * self._block
        self._following_block = 1  # the first batch is read alone, so that it does not wait for others

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
        while self._pending:
            _, future = self._pending.popleft()
            if not future.cancelled() and (error := future.exception()) is not None:
                error.__traceback__ = None  # its frames hold the error and the samples: a cycle

    def _begin(self, count: int) -> None:
        """Start to read up to ``count`` batches."""
        steps = range(self._next_step, min(self._next_step + count, len(self._schedule)))
        batches = []
        for step in steps:
            buffer = self.free_buffers.pop() if self.free_buffers else self._collator.new_buffer()
            rows, global_rows = self._schedule.batch(step, self._rank), self._schedule.global_batch(step)
            batches.append(self._collator.prepare(rows, global_rows, buffer, self._epoch))
        for batch, filled in zip(batches, self._reader.begin([batch.spans for batch in batches]), strict=True):
            self._pending.append((batch.buffer, self._pool.submit(self._finish, batch, filled)))
        self._next_step = steps.stop

    def _finish(self, pending: PendingBatch, filled: Filled) -> Batch:
        batch = self._collator.finish(pending, self._epoch, filled, partial(begin_one, self._reader))
        if not self._collator.lends_buffer:
            self.free_buffers.append(pending.buffer)  # the next batch is read into memory that the cache still has
        return batch

"""One rank's batches in order, read ahead by threads, and the state to go on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.loader.batch import Batch
from pipeline.loader.collate import Collator, Draft, Slot
from pipeline.loader.epochs import BatchPolicy, EpochSchedule
from pipeline.loader.options import Options
from pipeline.loader.readers import Reader, Wait, open_reader
from pipeline.loader.state import LoaderState

if TYPE_CHECKING:
    from pipeline.loader import LatentDataset

BLOCKS_AHEAD = 3
"""Rounds of ``begin`` that are read ahead, where a round is several batches."""

Coming = deque[tuple[Slot, "Future[Batch]"]]


class Batches(LoaderState):
    """One rank's batches. ``state_dict`` after any batch, loaded into an equal object, goes on with the next one."""

    def __init__(
        self,
        data: LatentDataset,
        policy: BatchPolicy,
        options: Options,
        *,
        seed: int,
        rank: int,
        mapped: bool,
        threads: int,
    ) -> None:
        super().__init__(data, policy, options.patch, seed)
        self.data = data
        self.rank = rank
        self.world_size = policy.world_size
        self._options = options
        self._mapped = mapped
        self._threads = threads
        self._assembler = Collator(data.samples, data.card, data.recipe.dtype, options, seed)
        self._slots: list[Slot] = []

    @property
    def dropped(self) -> int:
        """Samples that this epoch leaves out, as they fill no whole step; others are left out in every epoch."""
        return self.plan().dropped

    @property
    def padded(self) -> int:
        """Blank places in this epoch."""
        return self.plan().padded

    @property
    def repeated(self) -> int:
        """Places in this epoch that hold samples which it has already."""
        return self.plan().repeated

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch; afterwards the next epoch is due."""
        plan, epoch = self.plan(), self.epoch
        reader = open_reader(self.data.store, mapped=self._mapped, cache=self.data.range_cache)
        steps, coming = iter(range(self.step, len(plan))), Coming()
        slots, self._slots = self._slots, []
        block = 1 if len(plan) == 0 else -(-reader.samples_at_once // max(len(plan.batch(0, self.rank)), 1))
        ahead = self._threads + 1 if block == 1 else BLOCKS_AHEAD * block
        pool = ThreadPoolExecutor(self._threads)
        size = 1  # the first batch does not wait for others
        try:
            while True:
                while len(coming) + size <= ahead and self._begin(
                    reader, pool, plan, epoch, steps, size, slots, coming
                ):
                    size = block
                if not coming:
                    break
                slot, future = coming.popleft()
                batch = future.result()
                self.step += 1
                yield batch
                slots.append(slot)
        finally:
            for _, future in coming:
                future.cancel()
            reader.close()
            pool.shutdown()
            self._slots = slots
        self.epoch, self.step = epoch + 1, 0

    def _begin(
        self,
        reader: Reader,
        pool: ThreadPoolExecutor,
        plan: EpochSchedule,
        epoch: int,
        steps: Iterator[int],
        size: int,
        slots: list[Slot],
        coming: Coming,
    ) -> bool:
        """Start reading up to ``size`` batches; whether there were any."""
        drafts = []
        for _, step in zip(range(size), steps, strict=False):
            slot = slots.pop() if slots else Slot(self._options.device)
            drafts.append(self._assembler.draft(plan.batch(step, self.rank), plan.whole(step), slot))
        for draft, wait in zip(drafts, reader.begin([draft.spans for draft in drafts]), strict=True):
            coming.append((draft.slot, pool.submit(self._finish, draft, wait, epoch)))
        return bool(drafts)

    def _finish(self, draft: Draft, wait: Wait, epoch: int) -> Batch:
        wait()
        return self._assembler.finish(draft, epoch)

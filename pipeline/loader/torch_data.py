"""A map-style ``Dataset`` and a batch sampler that can resume, for trainers that want torch's ``DataLoader``.

``LatentDataset.batches`` reads faster, because its batches do not go through worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.loader.collate import Collator
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.options import BatchOptions, OptionsAsKeywords, check_data_loader, resolve_rank
from pipeline.loader.readers import Reader, open_reader
from pipeline.loader.schedule.epoch import EpochSchedule
from pipeline.loader.state import LoaderState
from pipeline.storage.store import Store

Sample = dict[str, Any]
"""The entries of a ``Batch`` for one sample: ``latents`` [C,t,h,w], numbers as tensors, and texts, which are never None."""
Index = int | tuple[int, int]
"""A sample, or a sample and an epoch. Posterior samples and the choice of captions depend on the epoch."""


class SampleDataset(Dataset[Sample]):
    """Map-style view of a ``LatentDataset`` for ``torch.utils.data.DataLoader``; see ``StepSampler`` for the order.

    The keywords are those of ``LatentDataset.batches`` that say what a sample holds. Give ``seed`` the value that the
    sampler has: posterior samples and captions follow from it, the epoch and the sample's id.
    """

    @OptionsAsKeywords(BatchOptions)
    def __init__(self, data: LatentDataset, options: BatchOptions) -> None:
        check_data_loader(options)
        options.check(data.samples, data.recipe, data.card)
        self.data = data
        self._mapped = options.mapped
        self._collator = Collator(data.samples, data.card, data.recipe, options)
        self._reader: tuple[int, Reader] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Index) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Index]) -> list[Sample]:
        """Return several samples, as ``DataLoader`` calls it. Samples of one bucket and epoch are read together."""
        pairs = [(index, 0) if isinstance(index, int) else index for index in indices]
        rows, epochs = (np.array(values, dtype=np.int64) for values in zip(*pairs, strict=True))
        if len(set(self.data.samples.codes[rows].tolist())) > 1 or len(set(epochs.tolist())) > 1:
            return [self[pair] for pair in pairs]
        pending = self._collator.prepare(rows, rows, self._collator.new_buffer())
        (wait,) = self._process_reader().begin([pending.spans])
        wait()
        batch = self._collator.finish(pending, int(epochs[0]))
        columns = {name: value for name, value in batch.items() if isinstance(value, Tensor | list)}
        return [{name: _without_none(values[i]) for name, values in columns.items()} for i in range(len(rows))]

    def _process_reader(self) -> Reader:
        """Return the reader of this process. A forked process opens its own, because threads do not survive a fork."""
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = (
                os.getpid(),
                open_reader(Store(self.data.url), mapped=self._mapped, cache=self.data.range_cache),
            )
        return self._reader[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler with the order of ``LatentDataset.batches``, whose ordering keywords it takes.

    Pass it as ``batch_sampler``. torchdata's ``StatefulDataLoader`` saves its state with any number of workers. A plain
    ``DataLoader`` with workers reads ahead of training; save ``state_after(n)`` after n batches of the epoch.
    """

    @OptionsAsKeywords(BatchOptions)
    def __init__(self, data: LatentDataset, options: BatchOptions) -> None:
        check_data_loader(options)
        self.rank, world_size = resolve_rank(options)
        self._state = LoaderState(data.samples, options.policy(world_size), options.patch, options.seed)

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        return len(self.schedule())

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self._state.epoch

    @property
    def step(self) -> int:
        """Number of batches of this epoch that have been requested."""
        return self._state.step

    def schedule(self) -> EpochSchedule:
        """Return the batches of the current epoch on all ranks, as rows of the samples."""
        return self._state.schedule()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch as five values that JSON can hold."""
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position. Raises ConfigError, naming what differs, if it belongs to another schedule."""
        self._state.load_state_dict(state)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Iterate over the rest of the current epoch, then move on to the next epoch."""
        return _Steps(self._state, self.rank)

    def state_after(self, step: int) -> dict[str, Any]:
        """Return the state for the time when training has used ``step`` batches of this epoch."""
        return self.state_dict() | {"step": step}


class _Steps(Iterator[list[tuple[int, int]]]):
    """The rest of an epoch as lists of indices, with the methods that ``StatefulDataLoader`` calls."""

    def __init__(self, state: LoaderState, rank: int) -> None:
        self._state = state
        self._rank = rank
        self._epoch = state.epoch
        self._step = state.step

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> list[tuple[int, int]]:
        state = self._state
        if state.epoch != self._epoch:
            raise StopIteration
        if self._step >= len(state.schedule()):
            state.start_epoch(self._epoch + 1)
            raise StopIteration
        rows = state.schedule().batch(self._step, self._rank)
        self._step += 1
        state.step = self._step
        return [(row, self._epoch) for row in rows.tolist()]

    def state_dict(self) -> dict[str, Any]:
        return self._state.state_dict() | {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.load_state_dict(state)
        self._epoch, self._step = self._state.epoch, self._state.step


def _without_none(value: Any) -> Any:
    """Replace None, which torch's default collation refuses, by an empty text."""
    return "" if value is None else value

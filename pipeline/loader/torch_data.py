"""A map-style ``Dataset`` and a batch sampler that can resume, for trainers that want torch's ``DataLoader``.

``LatentDataset.batches`` reads faster, because its batches do not go through worker processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.errors import ConfigError
from pipeline.loader.agreement import announce_schedule
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.loop import Position
from pipeline.loader.options import BatchOptions, OptionsAsKeywords, check_data_loader
from pipeline.loader.ranks import resolve_rank
from pipeline.loader.readers import Reader, begin_one, open_reader

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
        data.check(options)
        self.data = data
        self._mapped = options.mapped
        self._collator = data.collator(options)
        self._reader: tuple[int, Reader] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Index) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Index]) -> list[Sample]:
        """Return several samples, as ``DataLoader`` calls it. Samples of one bucket and epoch are read together."""
        pairs = begin_read(indices)
        rows, epochs = (np.array(values, dtype=np.int64) for values in zip(*pairs, strict=True))
        if len(set(self.data.samples.codes[rows].tolist())) > 1 or len(set(epochs.tolist())) > 1:
            return [self[pair] for pair in pairs]
        epoch = int(epochs[0])
        pending = self._collator.prepare(rows, rows, self._collator.new_buffer(), epoch)
        read = partial(begin_one, self._process_reader())
        batch = self._collator.finish(pending, epoch, read(pending.spans), read)
        columns = {name: value for name, value in batch.items() if isinstance(value, Tensor | list)}
        return [{name: _without_none(values[i]) for name, values in columns.items()} for i in range(len(rows))]

    def _process_reader(self) -> Reader:
        """Return the reader of this process. A forked process opens its own, because threads do not survive a fork."""
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = (
                os.getpid(),
                open_reader(self.data.store, mapped=self._mapped, cache=self.data.range_cache),
            )
        return self._reader[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}


class StepIndices(list[tuple[int, int]]):
    """The samples of one step, with their epoch. Knows whether they were read in this process."""

    on_read: Callable[[], None] | None = None

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return list, (list(self),)  # a worker process gets the plain list


class Positioned(Protocol):
    """A ``LatentDataset``, or a ``MixedDataset``."""

    def position(self, options: BatchOptions, world_size: int) -> Position:
        """Return the position of a training run before its first batch."""


def begin_read(indices: Sequence[Index]) -> list[tuple[int, int]]:
    """Note that samples are read in this process. Returns them, each with its epoch."""
    if isinstance(indices, StepIndices) and indices.on_read is not None:
        indices.on_read()
    return [(index, 0) if isinstance(index, int) else index for index in indices]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler with the order of ``data.batches``, whose ordering keywords it takes, for one set or several.

    Pass it as ``batch_sampler``. The next epoch begins when the last batch is requested. torchdata's
    ``StatefulDataLoader`` saves its state with any number of workers. A plain ``DataLoader`` with workers reads ahead of
    training; save ``state_after(n)`` after n batches of the epoch.
    """

    @OptionsAsKeywords(BatchOptions)
    def __init__(self, data: Positioned, options: BatchOptions) -> None:
        check_data_loader(options)
        self.rank, self._world_size = resolve_rank(options)
        self._batch_size = options.batch_size
        self._once = options.loop == "once"
        self._state = data.position(options, self._world_size)
        self._latest: _Steps | None = None
        self.check_ranks = announce_schedule(self._state.describe_schedule()) if options.rank is None else lambda: None
        if self.rank == 0 and (note := self._state.describe_untrained()):
            warnings.warn(note, stacklevel=3)

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        return len(self._state)

    @property
    def batch_size(self) -> int:
        """Number of samples in a batch, for trainers that split each batch between processes, such as accelerate.

        ConfigError if the sampler's batches are those of one rank already, or differ in size.
        """
        if self._world_size > 1:
            raise ConfigError(
                f"this StepSampler already gives the batches of rank {self.rank} of {self._world_size}, but the trainer is "
                "about to split them between the processes once more. With accelerate, use LatentDataset.batches without "
                "prepare(), or StepSampler(rank=0, world_size=1) with the batch size of all processes together and "
                "DataLoaderConfiguration(split_batches=True)"
            )
        if self._batch_size is None:
            raise ConfigError("batches of tokens_per_batch differ in size and cannot be split; give batch_size")
        return self._batch_size

    @property
    def sampler(self) -> StepSampler:
        """This object, because accelerate and Lightning call ``set_epoch`` on the attribute ``sampler``."""
        return self

    @property
    def drop_last(self) -> bool:
        """True, because all batches of a bucket are whole."""
        return True

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next batch, from 0."""
        return self._state.epoch

    @property
    def step(self) -> int:
        """Number of batches of this epoch that have been requested. After the last one it is 0, in the next epoch."""
        return self._state.step

    def set_epoch(self, epoch: int) -> None:
        """Move to the first batch of an epoch. In the current epoch the position stays, so that a resumed epoch goes on."""
        if epoch != self._state.epoch and self._latest is not None and self._latest.epoch is not None:
            self._latest = None
        self._state.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch as five values that JSON can hold."""
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Continue at a saved position, as ``Batches.load_state_dict`` does."""
        self._state.load_state_dict(state, new_epoch=new_epoch)
        self._latest = None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Iterate over the rest of the current epoch, or over the same pass with ``loop="once"``.

        An iteration that was left early is continued if its batches were read in this process. Otherwise the first
        request raises ConfigError, because workers have read batches that did not reach training.
        """
        unread = 0 if self._latest is None else self._latest.unread
        if self._once and self._latest is not None:
            self._state.move_to(self.epoch, 0)
            unread = 0
        self._latest = _Steps(self, unread)
        return self._latest

    def state_after(self, step: int) -> dict[str, Any]:
        """Return the state for the time when training has used ``step`` batches of the latest iteration's epoch."""
        epoch = self.epoch if self._latest is None or self._latest.epoch is None else self._latest.epoch
        return self.state_at(epoch, step)

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        """Return the state for the time when training has used ``step`` batches of an epoch."""
        return self._state.state_at(epoch, step)

    def continue_with(self, steps: _Steps) -> None:
        """Make an iteration the latest one."""
        self._latest = steps

    def is_latest(self, steps: _Steps) -> bool:
        """Return whether no other iteration has begun, and no position was set, since this one was made."""
        return self._latest is steps

    def take_step(self, epoch: int, step: int) -> StepIndices | None:
        """Return a step of an epoch and move behind it; None behind the last one."""
        state = self._state
        if (epoch, step) != (state.epoch, state.step):
            state.move_to(epoch, step)
        length = len(state)
        if not length:
            raise ConfigError(f"this epoch has no steps. {state.describe_empty()}")
        indices = StepIndices(state.take(self.rank)) if step < length else None
        if state.step >= length:
            state.move_to(epoch if self._once else epoch + 1, 0)
        return indices


class _Steps(Iterator[list[tuple[int, int]]]):
    """One iteration over an epoch, with the methods that ``StatefulDataLoader`` calls."""

    def __init__(self, sampler: StepSampler, unread: int) -> None:
        self.epoch: int | None = None
        """The epoch that this iteration goes through; None before the first request."""
        self.unread = unread
        """Number of requested batches that were not read in this process. Those of the iteration before, at first."""
        self._sampler = sampler
        self._step = 0

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> list[tuple[int, int]]:
        if not self._sampler.is_latest(self):
            raise RuntimeError(
                "another loop over this StepSampler has begun, or its position was set, since this loop began. Two loops "
                "at once would each get a part of the samples: make one StepSampler for each loop"
            )
        if self.epoch is None:
            if self.unread:
                raise ConfigError(
                    f"the loop before this one was left early, and {self.unread} batches that workers had requested may not "
                    "have reached training. Say where to go on: sampler.load_state_dict(sampler.state_after(n)) after n "
                    "batches, or sampler.set_epoch(n)"
                )
            self._sampler.check_ranks()
            self.epoch, self._step = self._sampler.epoch, self._sampler.step
        indices = self._sampler.take_step(self.epoch, self._step)
        if indices is None:
            self.unread = 0
            raise StopIteration
        self._step += 1
        self.unread += 1
        indices.on_read = self._count_read
        return indices

    def _count_read(self) -> None:
        self.unread -= 1

    def state_dict(self) -> dict[str, Any]:
        sampler = self._sampler
        return sampler.state_dict() if self.epoch is None else sampler.state_at(self.epoch, self._step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)
        self._sampler.continue_with(self)
        self.epoch, self.unread = None, 0


def _without_none(value: Any) -> Any:
    """Replace None, which torch's default collation refuses, by an empty text."""
    return "" if value is None else value

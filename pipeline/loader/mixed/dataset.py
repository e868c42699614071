"""``MixedDataset``: several outputs that train one model, in shares that weights say."""

from __future__ import annotations

import dataclasses
import operator
import os
import warnings
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.loader.agreement import announce_schedule
from pipeline.loader.collation.batch import Batch
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.mixed.batches import MixedBatches
from pipeline.loader.mixed.compatibility import check_same_batches, check_same_latents
from pipeline.loader.mixed.position import MixedPosition, SetPosition
from pipeline.loader.mixed.weights import Weight, check_weights
from pipeline.loader.options import BatchOptions, OptionsAsKeywords
from pipeline.loader.ranks import resolve_rank
from pipeline.storage.urls import canonical


class MixedDataset:
    """Several sets of latents of one VAE. Every step takes its batch from one set, the same set on all ranks."""

    def __init__(
        self,
        sets: Mapping[str | os.PathLike[str] | LatentDataset, Weight],
        seed: int = 0,
        *,
        steps_per_epoch: int | None = None,
        allow_imported: bool = False,
    ) -> None:
        """Open the sets that are given by URL or path.

        sets: each set's weight: the share of the steps that it gets. A number, or a function of the epoch and the number
        of steps since the start of training, such as ``lambda epoch, step: 0.5 if epoch < 3 else 0.1``.
        seed: of the choice of sets, and of everything that ``seed`` means to ``LatentDataset.batches``.
        steps_per_epoch: default: the steps that all sets have in their first epochs together.
        allow_imported: mix imported sets with others, although nothing verifies which VAE made their latents.
        Raises ConfigError, naming the sets and the difference, if they cannot be mixed.
        """
        if not isinstance(sets, Mapping) or not sets:
            raise ConfigError("sets must be a dictionary with the weight of each set, and have at least one")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ConfigError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        wrong = [type(key).__name__ for key in sets if not isinstance(key, str | os.PathLike | LatentDataset)]
        if wrong:
            raise ConfigError(f"a set must be a URL, a path or a LatentDataset, got {wrong[0]}")
        check_weights({_plain_name(key): weight for key, weight in sets.items()})
        self.sets = _name_sets([key if isinstance(key, LatentDataset) else LatentDataset(key) for key in sets])
        """The sets by name: the path, or the URL without credentials, with the filter where one output comes twice."""
        self.weights = check_weights(dict(zip(self.sets, sets.values(), strict=True)))
        self.seed = operator.index(seed)
        self._steps_per_epoch = None if steps_per_epoch is None else operator.index(steps_per_epoch)
        check_same_latents(self.sets, allow_imported=allow_imported)

    def __len__(self) -> int:
        """Number of samples of all sets."""
        return sum(map(len, self.sets.values()))

    @OptionsAsKeywords(BatchOptions)
    def batches(self, options: BatchOptions) -> MixedBatches:
        """Return the batches of one rank. The keywords are those of ``LatentDataset.batches``, without ``seed``.

        Raises ConfigError if options exclude each other or would give batches that differ between the sets.
        """
        rank, world_size = resolve_rank(options)
        position = self.position(options, world_size)
        if rank == 0 and (note := position.describe_untrained()):
            warnings.warn(note, stacklevel=3)
        of_a_set = dataclasses.replace(
            self.with_seed(options), rank=rank, world_size=world_size, mesh=None, loop="forever"
        )
        return MixedBatches(
            position,
            {
                one.name: self.sets[one.name].batches_from(one.state, of_a_set, rank, world_size)
                for one in position.sets
            },
            rank=rank,
            world_size=world_size,
            loop=options.loop,
            check_ranks=announce_schedule(position.describe_schedule()) if options.rank is None else lambda: None,
        )

    def position(self, options: BatchOptions, world_size: int) -> MixedPosition:
        """Return the position of a training run before its first batch. ConfigError if the options cannot be met."""
        options = self.with_seed(options)
        check_same_batches(self.sets, options)
        positions, first_index = [], 0
        for name, data in self.sets.items():
            state = data.position(options, world_size)
            positions.append(SetPosition(name=name, weight=self.weights[name], state=state, first_index=first_index))
            first_index += len(data)
        return MixedPosition(positions, self.seed, self._steps_per_epoch)

    def with_seed(self, options: BatchOptions) -> BatchOptions:
        """Return options with the seed of this object. Raises ConfigError if they have another one."""
        if options.seed not in (0, self.seed):
            raise ConfigError(
                f"the seed is that of the MixedDataset, {self.seed}; give it MixedDataset(..., seed={options.seed})"
            )
        return dataclasses.replace(options, seed=self.seed)

    def normalize(self, batch: Batch) -> Batch:
        """Return a copy of a batch of raw latents with normalized latents. Raises ConfigError if they are normalized."""
        return next(iter(self.sets.values())).normalize(batch)


def _plain_name(key: str | os.PathLike[str] | LatentDataset) -> str:
    """Return the path of a set, or its URL without credentials."""
    url = key.url if isinstance(key, LatentDataset) else os.fspath(key)
    return canonical(url) if "://" in url else url


def _name_sets(opened: list[LatentDataset]) -> dict[str, LatentDataset]:
    """Name each set by its path or URL, and by its filter or a number where that is not enough."""
    urls = [_plain_name(data) for data in opened]
    named: dict[str, LatentDataset] = {}
    for data, url in zip(opened, urls, strict=True):
        name = url
        if urls.count(url) > 1 and data.samples.where:
            name = f"{url} where {data.samples.where}"
        number = 2
        while name in named:
            name = f"{url} #{number}"
            number += 1
        named[name] = data
    return named

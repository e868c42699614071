"""The batches of several sets, each step from one of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader.collation.batch import Batch
from pipeline.loader.iterator import Batches
from pipeline.loader.loop import EpochLoop
from pipeline.loader.mixed.position import MixedPosition
from pipeline.loader.options import Loop


class MixedBatches(EpochLoop):
    """The batches of one rank, each from one of the sets that ``batch["dataset"]`` names. Used like ``Batches``."""

    def __init__(
        self,
        position: MixedPosition,
        sets: Mapping[str, Batches],
        *,
        rank: int,
        world_size: int,
        loop: Loop,
        check_ranks: Callable[[], None],
    ) -> None:
        super().__init__(position, rank=rank, world_size=world_size, loop=loop, check_ranks=check_ranks)
        self.sets = dict(sets)
        """The batches of each set. Read their ``epoch``, ``step`` or ``dropped``, but do not iterate over them."""
        self._mix = position

    @property
    def replacements(self) -> list[dict[str, Any]]:
        """The damaged samples that this rank has replaced so far, each with the name of its set as ``dataset``."""
        return [
            {"dataset": name} | replacement
            for name, batches in self.sets.items()
            for replacement in batches.replacements
        ]

    def _read_epoch(self) -> Generator[Batch]:
        names = [one.name for one in self._mix.sets]
        open_epochs: dict[str, Generator[Batch]] = {}
        try:
            for number in self._mix.draws(self.epoch)[self.step :].tolist():
                yield self._next_batch(names[number], open_epochs)
        finally:
            for batches in open_epochs.values():
                batches.close()

    def _next_batch(self, name: str, open_epochs: dict[str, Generator[Batch]]) -> Batch:
        """Return the next batch of a set, from its next epoch if this one is over. open_epochs: iterations by set."""
        try:
            batch = next(open_epochs[name], None) if name in open_epochs else None
            if batch is None:
                open_epochs[name] = iter(self.sets[name])
                batch = next(open_epochs[name])
        except (ConfigError, IntegrityError) as error:
            raise type(error)(f"set '{name}': {error}") from error
        batch["dataset"] = name
        return batch

    def _pass(self, batch: Batch) -> None:
        self._mix.step += 1

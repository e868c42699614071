"""Where training is in its epochs, as a few values that can be saved."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.epoch_cache import shared_epoch
from pipeline.loader.epochs import BatchPolicy, EpochSchedule, schedule_epoch

if TYPE_CHECKING:
    from pipeline.loader import LatentDataset

STATE_VERSION = 2


class LoaderState:
    """The steps of every epoch and where training is in them: what a state says."""

    def __init__(self, data: LatentDataset, policy: BatchPolicy, patch: tuple[int, int, int], seed: int) -> None:
        self.epoch = 0
        self.step = 0
        self.seed = seed
        self._samples = data.samples
        self._policy = policy
        self._names = [str(bucket) for bucket in data.samples.buckets]
        cells = np.array([bucket.latent_thw for bucket in data.samples.buckets], dtype=np.int64).reshape(-1, 3)
        self._tokens = np.prod(-(-cells // np.array(patch)), axis=1)
        self._planned: tuple[int, int, EpochSchedule] | None = None
        self.schedule_hash = self._plan_hash(data)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.plan())

    def plan(self) -> EpochSchedule:
        """The current epoch's."""
        if self._planned is None or self._planned[:2] != (self.seed, self.epoch):
            folder = self._samples.folder
            name = f"{self.schedule_hash} world_size={self._policy.world_size} seed={self.seed} epoch={self.epoch}"
            made = self._make() if folder is None else shared_epoch(folder / "epochs", name, self._make)
            self._planned = (self.seed, self.epoch, made)
        return self._planned[2]

    def _make(self) -> EpochSchedule:
        s = self._samples
        return schedule_epoch(s.keys, s.codes, self._tokens, self._names, self._policy, self.seed, self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is; counts batches that were handed out."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
            "schedule_hash": self.schedule_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, also with another world size at the same global batch.

        ConfigError names what is not the same: the samples, the filter, the seed, or how batches are formed.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"this state has version {state.get('version')}; this program reads {STATE_VERSION}")
        ours, theirs = ({"seed": str(s["seed"])} | _parts(s["schedule_hash"]) for s in (self.state_dict(), state))
        differing = [
            f"{name} ({theirs.get(name)} there, {value} here)"
            for name, value in ours.items()
            if theirs.get(name) != value and not (name == "where" and theirs.get("samples") == ours["samples"])
        ]
        if differing:
            raise ConfigError(
                f"this state is of another plan. It differs in {', '.join(differing)}. Resume with the same output, "
                "filter, seed and global batch, or begin anew without the state"
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _plan_hash(self, data: LatentDataset) -> str:
        """What the plan follows from, each part readable or hashed, so that a difference has a name."""
        policy = self._policy
        sizes = policy.sizes(self._tokens, self._names)
        if policy.shapes == "pack":
            batch = f"{policy.tokens_per_batch}x{policy.world_size}:{_short(str(self._tokens.tolist()))}"
        elif policy.tokens_per_batch is None:
            batch = str((policy.batch_size or 0) * policy.world_size)
        else:
            batch = _short(str((sizes * policy.world_size).tolist()))
        parts = {
            "samples": data.samples.digest,
            "where": _short(data.where) if data.where else "all",
            "global_batch": batch,
            "tail": policy.tail,
            "shapes": policy.shapes,
        }
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _parts(schedule_hash: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in schedule_hash.split(" "))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

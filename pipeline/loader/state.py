"""The position of a training run in its epochs, as a few values that can be saved."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, TypedDict

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.loop import Position
from pipeline.loader.samples import Samples
from pipeline.loader.schedule.cache import cached_schedule
from pipeline.loader.schedule.epoch import BLANK, EpochSchedule, schedule_epoch
from pipeline.loader.schedule.keys import BucketCodes, Indices
from pipeline.loader.schedule.mixing import mix_groups
from pipeline.loader.schedule.policy import BatchPolicy, BatchSize, TokenBudget

MAX_NAMED = 8
"""Largest number of buckets that a message names."""
STATE_VERSION = 3
"""Version of what ``state_dict`` returns. A state of another version is refused."""


class Replacement(TypedDict):
    """A damaged sample and the sample that a batch held in its place."""

    epoch: int
    step: int
    damaged: str
    """Id of the damaged sample."""
    used: str
    """Id of the sample in its place."""


class LoaderState(Position):
    """The position of one training run: the epoch, the step in it, and the schedule that they refer to."""

    def __init__(self, samples: Samples, policy: BatchPolicy, patch: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.replacements: list[Replacement] = []
        """The damaged samples that were replaced, in the order of the batches."""
        self._samples = samples
        self._policy = policy
        cells = np.array([bucket.latent_thw for bucket in samples.buckets], dtype=np.int64).reshape(-1, 3)
        self._tokens = np.prod(-(-cells // np.array(patch)), axis=1)
        if isinstance(policy.budget, TokenBudget):
            policy.budget.check_fits(self._tokens, [str(bucket) for bucket in samples.buckets])
        self._current: tuple[int, EpochSchedule] | None = None
        self.schedule_hash = self._schedule_hash()

    def __len__(self) -> int:
        return len(self.schedule())

    def schedule(self) -> EpochSchedule:
        """Return the batches of the current epoch."""
        if self._current is None or self._current[0] != self.epoch:
            folder = self._samples.folder
            name = f"{self.describe_schedule()} epoch={self.epoch}"
            make = self._make_schedule
            self._current = (self.epoch, make() if folder is None else cached_schedule(folder / "epochs", name, make))
        return self._current[1]

    def take(self, rank: int) -> list[tuple[int, int]]:
        rows = self.schedule().batch(self.step, rank).tolist()
        self.step += 1
        return [(row, self.epoch) for row in rows]

    def describe_schedule(self) -> str:
        """Name everything that the batches of all ranks depend on."""
        return f"{self.schedule_hash} world_size={self._policy.world_size} seed={self.seed}"

    def describe_empty(self) -> str:
        """Say why the current epoch has no steps, and what would help."""
        members = self._samples.in_epoch(self.epoch)
        count = len(self._samples.keys if members is None else members)
        if not count:
            return "No sample passes the filter; check where="
        return self._describe_small_buckets(members) or (
            f"The {count} samples fill fewer batches than there are ranks ({self._policy.world_size}). "
            "Use tail='repeat' or smaller batches"
        )

    def describe_untrained(self) -> str | None:
        """Say which samples no epoch trains on, by bucket, because they fill no step; None if there are none."""
        for phase in self._samples.phases:
            if note := self._describe_small_buckets(phase.members):
                return f"from epoch {phase.first_epoch} on, {note}"
        return None if self._samples.phases else self._describe_small_buckets(None)

    def _describe_small_buckets(self, members: Indices | None) -> str | None:
        """Say which samples among ``members`` (None for all) are in buckets that fill no step; None if there are none."""
        policy, codes = self._policy, self._samples.codes
        if policy.groups:  # only their samples are to be trained on
            codes = np.concatenate([codes[self._in_group(name, members)] for name, _ in policy.groups])
        elif members is not None:
            codes = codes[members]
        counts = np.bincount(codes, minlength=len(self._samples.buckets))
        if policy.tail != "drop" or policy.shapes == "pack" or not counts.any():
            return None
        step_sizes = policy.batch_sizes(self._tokens) * policy.world_size
        names = [str(bucket) for bucket in self._samples.buckets]
        if policy.shapes == "pad":
            counts, step_sizes, names = counts.sum(keepdims=True), step_sizes[:1], ["all buckets together"]
        small = [
            f"{name} ({count} of {size})"
            for name, count, size in zip(names, counts.tolist(), step_sizes.tolist(), strict=True)
            if 0 < count < size
        ]
        if not small:
            return None
        lost = int(counts[counts < step_sizes].sum())
        return (
            f"{lost} of {counts.sum()} samples are never trained on, because their bucket has fewer samples than one step "
            f"of all ranks needs: {', '.join(small[:MAX_NAMED])}{', ...' if len(small) > MAX_NAMED else ''}. "
            "Use tail='repeat' or tail='pad', smaller batches, shapes='pad', or leave these samples out with where="
        )

    def _make_schedule(self) -> EpochSchedule:
        s, policy = self._samples, self._policy
        members = s.in_epoch(self.epoch)
        if policy.groups:
            groups = {name: self._schedule_part(self._in_group(name, members)) for name, _ in policy.groups}
            return mix_groups(groups, policy, self.seed, self.epoch)
        if members is not None:
            return self._schedule_part(members)
        return schedule_epoch(s.keys, s.codes, self._tokens, policy, self.seed, self.epoch)

    def _in_group(self, group: str, members: Indices | None) -> Indices:
        """Return the samples of a bucket group among ``members`` (None for all), int64 [samples of both]."""
        in_group = self._samples.in_group(group)
        return in_group if members is None else np.intersect1d(in_group, members, assume_unique=True)

    def _schedule_part(self, members: Indices) -> EpochSchedule:
        """Return the batches of some samples alone. members: int64 [m], their numbers."""
        s = self._samples
        buckets, inverse = np.unique(s.codes[members], return_inverse=True)
        codes: BucketCodes = inverse.astype(np.uint16)
        schedule = schedule_epoch(s.keys[members], codes, self._tokens[buckets], self._policy, self.seed, self.epoch)
        rows = schedule.rows
        if len(members):
            rows = np.where(rows == BLANK, BLANK, members[rows])
        return dataclasses.replace(schedule, rows=rows)

    def note_replacements(self, damaged: list[str | None], used: list[str]) -> None:
        """Note the damaged samples of the next batch. damaged: their ids, None in the places of other samples."""
        for name, other in zip(damaged, used, strict=bool(damaged)):
            if name is not None:
                self.replacements.append({"epoch": self.epoch, "step": self.step, "damaged": name, "used": other})

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch as five values, and the replacements if there are any."""
        replacements = {"replacements": list(self.replacements)} if self.replacements else {}
        return replacements | {
            "version": STATE_VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
            "schedule_hash": self.schedule_hash,
        }

    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Continue after the batch at which ``state_dict`` was called.

        The world size may differ if the global batch is the same. Raises ConfigError, naming the differences, if the
        samples, the filter, the seed or the way batches are formed are not those of the state.
        new_epoch: begin the first epoch of which the state has seen nothing. Then only the seed must be that of the state.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"this loader state has version {state.get('version')}, but this program reads version {STATE_VERSION}. "
                "Resume with the program that saved it, or start without the state"
            )
        here, saved = ({"seed": str(s["seed"])} | _parts(s["schedule_hash"]) for s in (self.state_dict(), state))
        same_samples = saved.get("samples") == here["samples"]
        differing = [
            f"{name} ({saved.get(name)} in the state, {here.get(name)} here)"
            for name in here | saved
            if saved.get(name) != here.get(name) and not (name == "where" and same_samples)
            if name == "seed" or not new_epoch
        ]
        if differing:
            raise ConfigError(
                f"this loader state belongs to another schedule. It differs in {', '.join(differing)}. Resume with the "
                "same output, filter, seed and global batch. To go on with others, begin the next epoch: "
                "load_state_dict(state, new_epoch=True)"
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        if new_epoch and self.step:
            self.move_to(self.epoch + 1, 0)
        self.replacements = list(state.get("replacements", []))

    def _schedule_hash(self) -> str:
        """Return everything that the schedule depends on, with a name for each part, so that a message can name it."""
        policy, world_size = self._policy, self._policy.world_size
        if isinstance(policy.budget, BatchSize):
            batch = str(policy.budget.samples * world_size)
        elif policy.shapes == "pack":
            batch = f"{policy.budget.tokens}x{world_size}:{_short(str(self._tokens.tolist()))}"
        else:
            batch = _short(str((policy.batch_sizes(self._tokens) * world_size).tolist()))
        parts = {
            "samples": self._samples.digest,
            "where": _short(self._samples.where) if self._samples.where else "all",
            "global_batch": batch,
            "tail": policy.tail,
            "shapes": policy.shapes,
        }
        if not policy.shuffle:
            parts["order"] = _short(self._samples.keys.tobytes())
        if policy.groups:
            parts["groups"] = _short(str(policy.groups))
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _parts(schedule_hash: str) -> dict[str, str]:
    """Split a schedule hash into its parts by name."""
    return dict(part.partition("=")[::2] for part in schedule_hash.split(" "))


def _short(content: str | bytes) -> str:
    """Return 8 hex digits that stand for a text or for bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:8]

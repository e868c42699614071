"""The position of a training run in its epochs, as a few values that can be saved."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, TypedDict

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.agreement import describe_growth
from pipeline.loader.loop import Position
from pipeline.loader.samples import Phase, Samples
from pipeline.loader.schedule.cache import cached_schedule
from pipeline.loader.schedule.epoch import BLANK, EpochSchedule, schedule_epoch
from pipeline.loader.schedule.keys import BucketCodes, Indices, digest_of, short_digest
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

    def __init__(
        self,
        samples: Samples,
        policy: BatchPolicy,
        patch: tuple[int, int, int],
        seed: int,
        *,
        url: str = "",
        dataset_version: str | None = None,
    ) -> None:
        """``url``, ``dataset_version``: those of the output that the samples are of, for states and messages."""
        super().__init__()
        self.seed = seed
        self.dataset_version = dataset_version
        self._url = url
        self.replacements: list[Replacement] = []
        """The damaged samples that were replaced, in the order of the batches."""
        self._samples = samples
        self._policy = policy
        cells = np.array([bucket.latent_thw for bucket in samples.buckets], dtype=np.int64).reshape(-1, 3)
        self._tokens = np.prod(-(-cells // np.array(patch)), axis=1)
        if isinstance(policy.budget, TokenBudget):
            policy.budget.check_fits(self._tokens, [str(bucket) for bucket in samples.buckets])
        self._current: tuple[int, EpochSchedule] | None = None
        self._lengths: dict[int, int] = {}
        """Numbers of steps by epoch."""
        self._hashes: dict[int, str] = {}
        """Schedule hashes by the first epoch of a phase."""

    def __len__(self) -> int:
        return len(self.schedule())

    def schedule(self) -> EpochSchedule:
        """Return the batches of the current epoch."""
        if self._current is None or self._current[0] != self.epoch:
            self._current = (self.epoch, self._schedule_of(self.epoch))
        return self._current[1]

    def _schedule_of(self, epoch: int) -> EpochSchedule:
        """Return the batches of an epoch, from the cache if there is one."""
        folder = self._samples.folder
        make = partial(self._make_schedule, epoch)
        if folder is None:
            return make()
        return cached_schedule(folder / "epochs", f"{self._describe_epoch(epoch)} epoch={epoch}", make)

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        if self._policy.shapes != "pack" and not self._policy.groups:  # the same in all epochs with the same samples
            epoch = self._first_epoch(epoch)
        if epoch not in self._lengths:
            self._lengths[epoch] = len(self) if epoch == self.epoch else len(self._schedule_of(epoch))
        return self._lengths[epoch]

    def position_after(self, epoch: int, step: int, count: int) -> tuple[int, int]:
        """Return the epoch and the step that lie ``count`` batches behind a step of an epoch."""
        step += count
        while step >= (length := self.steps_in(epoch)) > 0:
            epoch, step = epoch + 1, step - length
        return epoch, step

    def roll_over(self) -> None:
        """Begin the next epoch, if the current one is at its end."""
        if self.step and self.step >= len(self):
            self.move_to(self.epoch + 1, 0)

    def take(self, rank: int) -> list[tuple[int, int]]:
        rows = self.schedule().batch(self.step, rank).tolist()
        self.step += 1
        return [(row, self.epoch) for row in rows]

    def describe_schedule(self) -> str:
        phases = "".join(
            f" from_epoch={p.first_epoch} {self.schedule_hash(p.first_epoch)}" for p in self._samples.phases
        )
        return f"{self._describe_epoch(0)}{phases}"

    def _describe_epoch(self, epoch: int) -> str:
        """Name everything that the batches of all ranks in an epoch depend on."""
        return f"{self.schedule_hash(epoch)} world_size={self._policy.world_size} seed={self.seed}"

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

    def _make_schedule(self, epoch: int) -> EpochSchedule:
        s, policy = self._samples, self._policy
        members = s.in_epoch(epoch)
        if policy.groups:
            groups = {name: self._schedule_part(self._in_group(name, members), epoch) for name, _ in policy.groups}
            return mix_groups(groups, policy, self.seed, epoch)
        if members is not None:
            return self._schedule_part(members, epoch)
        return schedule_epoch(s.keys, s.codes, self._tokens, policy, self.seed, epoch)

    def _in_group(self, group: str, members: Indices | None) -> Indices:
        """Return the samples of a bucket group among ``members`` (None for all), int64 [samples of both]."""
        in_group = self._samples.in_group(group)
        return in_group if members is None else np.intersect1d(in_group, members, assume_unique=True)

    def _schedule_part(self, members: Indices, epoch: int) -> EpochSchedule:
        """Return the batches of some samples alone in an epoch. members: int64 [m], their numbers."""
        s = self._samples
        buckets, inverse = np.unique(s.codes[members], return_inverse=True)
        codes: BucketCodes = inverse.astype(np.uint16)
        schedule = schedule_epoch(s.keys[members], codes, self._tokens[buckets], self._policy, self.seed, epoch)
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
        """Return the position of the next batch as a few values, with the output's version and any replacements."""
        return self.state_at(self.epoch, self.step)

    def state_at(self, epoch: int, step: int) -> dict[str, Any]:
        known = {"dataset_version": self.dataset_version, "replacements": list(self.replacements)}
        return {name: value for name, value in known.items() if value} | {
            "version": STATE_VERSION,
            "seed": self.seed,
            "epoch": epoch,
            "step": step,
            "schedule_hash": self.schedule_hash(epoch),
        }

    def load_state_dict(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Continue after the batch at which ``state_dict`` was called.

        The world size may differ if the global batch is the same. Raises ConfigError, naming the differences, if the
        samples, the filter, the seed or the way batches are formed are not those of the state in its epoch.
        new_epoch: begin the first epoch of which the state has seen nothing. Then only the seed must be that of the state.
        """
        self.check_state(state, new_epoch=new_epoch)
        self.move_to(int(state["epoch"]), int(state["step"]))
        if new_epoch and self.step:
            self.move_to(self.epoch + 1, 0)
        self.replacements = list(state.get("replacements", []))

    def check_state(self, state: dict[str, Any], *, new_epoch: bool = False) -> None:
        """Raise ConfigError, naming the differences, if a state belongs to another schedule; see ``load_state_dict``."""
        if "sets" in state:
            raise ConfigError("this loader state belongs to a MixedDataset; load it into the batches of one")
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"this loader state has version {state.get('version')}, but this program reads version {STATE_VERSION}. "
                "Resume with the program that saved it, or start without the state"
            )
        here = {"seed": str(self.seed)} | _parts(self.schedule_hash(int(state["epoch"])))
        saved = {"seed": str(state["seed"])} | _parts(state["schedule_hash"])
        same_samples = saved.get("samples") == here["samples"]
        versions = (state.get("dataset_version"), self.dataset_version)
        growth = "" if same_samples else describe_growth(self._url, *versions, len(self._samples.keys))
        differing = [
            f"{name} ({saved.get(name)} in the state, {here.get(name)} here)"
            for name in here | saved
            if saved.get(name) != here.get(name) and not (name == "where" and same_samples)
            if name == "seed" or not new_epoch
        ]
        if differing:
            raise ConfigError(
                f"this loader state belongs to another schedule. It differs in {', '.join(differing)}. "
                f"{growth}Resume with the same output, filter, seed and "
                "global batch. To go on with others, begin the next epoch: load_state_dict(state, new_epoch=True)"
            )

    def _first_epoch(self, epoch: int) -> int:
        """Return the first epoch of the phase that an epoch is in."""
        phase = self._samples.phase_of(epoch)
        return 0 if phase is None else phase.first_epoch

    def schedule_hash(self, epoch: int) -> str:
        """Return everything that the schedule of an epoch depends on, with a name for each part, for messages."""
        first_epoch = self._first_epoch(epoch)
        if first_epoch not in self._hashes:
            self._hashes[first_epoch] = self._make_schedule_hash(self._samples.phase_of(epoch))
        return self._hashes[first_epoch]

    def _make_schedule_hash(self, phase: Phase | None) -> str:
        policy, world_size = self._policy, self._policy.world_size
        keys, tokens, digest, where = self._samples.keys, self._tokens, self._samples.digest, self._samples.where
        if phase is not None:
            keys, tokens, where = (
                keys[phase.members],
                tokens[np.unique(self._samples.codes[phase.members])],
                phase.where,
            )
            digest = digest_of(keys)
        if isinstance(policy.budget, BatchSize):
            batch = str(policy.budget.samples * world_size)
        elif policy.shapes == "pack":
            batch = f"{policy.budget.tokens}x{world_size}:{short_digest(str(tokens.tolist()))}"
        else:
            batch = short_digest(str((policy.batch_sizes(tokens) * world_size).tolist()))
        parts = {
            "samples": digest,
            "where": short_digest(where) if where else "all",
            "global_batch": batch,
            "tail": policy.tail,
            "shapes": policy.shapes,
        }
        if not policy.shuffle:
            parts["order"] = short_digest(keys.tobytes())
        if policy.groups:
            parts["groups"] = short_digest(str(policy.groups))
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _parts(schedule_hash: str) -> dict[str, str]:
    """Split a schedule hash into its parts by name."""
    return dict(part.partition("=")[::2] for part in schedule_hash.split(" "))

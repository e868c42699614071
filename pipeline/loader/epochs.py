"""The order of an epoch: which samples form which batch on which rank, as a pure function of numbers.

A sample's place follows from its id, the seed and the epoch: how shards were cut and in which order rows are stored
does not matter. Ten million rows take seconds (``python -m tests.bench.loader --only plan``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

Tail = Literal["drop", "pad", "repeat"]
Shapes = Literal["bucket", "pad", "pack"]
Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
BLANK = -1
"""Row of a place that no sample fills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPolicy:
    """How samples become batches. Exactly one of ``batch_size`` and ``tokens_per_batch``, both per rank."""

    batch_size: int | None = None
    tokens_per_batch: int | None = None
    """Latent tokens (t x h x w over the patch) of a batch, at most."""
    world_size: int = 1
    tail: Tail = "drop"
    """Samples that fill no whole step of their bucket: left out, or the step filled with blanks or repeated samples."""
    shapes: Shapes = "bucket"
    """``bucket``: one latent shape per batch. ``pad`` and ``pack`` mix them; ``pack`` cuts by tokens."""

    def __post_init__(self) -> None:
        for name, value, known in (("tail", self.tail, get_args(Tail)), ("shapes", self.shapes, get_args(Shapes))):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got '{value}'")
        if (self.batch_size is None) == (self.tokens_per_batch is None):
            raise ConfigError("give either batch_size or tokens_per_batch")
        if (self.batch_size or self.tokens_per_batch or 0) < 1 or self.world_size < 1:
            raise ConfigError(
                f"batch_size, tokens_per_batch and world_size must be positive, got {self.batch_size}, "
                f"{self.tokens_per_batch} and {self.world_size}"
            )
        if self.shapes == "pack" and (self.tokens_per_batch is None or self.tail == "pad"):
            raise ConfigError("shapes='pack' needs tokens_per_batch, and tail 'drop' or 'repeat'")

    def sizes(self, tokens: Indices, names: list[str]) -> Indices:
        """Samples in one rank's batch, for each bucket. ConfigError where one sample is above the token budget."""
        if self.batch_size is not None:
            return np.full(len(tokens), self.batch_size)
        for name, count in zip(names, tokens.tolist(), strict=True):
            if count > (self.tokens_per_batch or 0):
                raise ConfigError(
                    f"a sample of {name} has {count} tokens, more than tokens_per_batch={self.tokens_per_batch}; "
                    "raise it, or leave these out with where="
                )
        if self.shapes == "pad":  # every sample may be padded to the largest
            tokens = np.full(len(tokens), tokens.max(initial=1))
        sizes: Indices = (self.tokens_per_batch or 0) // tokens
        return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochSchedule:
    """The batches of an epoch. Step ``s`` of rank ``r`` is ``rows[bounds[s, r]:bounds[s, r + 1]]``."""

    rows: Indices
    """Rows in the order of their batches; ``BLANK`` where a place stays empty."""
    bounds: Indices
    """[steps, world_size + 1]"""
    dropped: int = 0
    """Samples that this epoch leaves out."""
    padded: int = 0
    """Blank places."""
    repeated: int = 0
    """Places filled with samples that the epoch has already."""

    def __len__(self) -> int:
        return len(self.bounds)

    def batch(self, step: int, rank: int) -> Indices:
        """Rows of one rank's batch."""
        return self.rows[self.bounds[step, rank] : self.bounds[step, rank + 1]]

    def whole(self, step: int) -> Indices:
        """Rows of a step on all ranks."""
        return self.rows[self.bounds[step, 0] : self.bounds[step, -1]]


def schedule_epoch(
    keys: Keys,
    codes: npt.NDArray[np.uint16],
    tokens: Indices,
    names: list[str],
    policy: BatchPolicy,
    seed: int,
    epoch: int,
) -> EpochSchedule:
    """Every sample in one batch on one rank, but for the tails.

    keys: uint64 [n], equally distributed, from the samples' ids. codes: uint16 [n], each sample's bucket.
    tokens, names: of each bucket, in an order that follows from the buckets alone.
    """
    sizes = policy.sizes(tokens, names)
    if not len(keys):
        return EpochSchedule(rows=np.zeros(0, np.int64), bounds=np.zeros((0, policy.world_size + 1), np.int64))
    mixed = _mix(keys ^ salt(seed, epoch))
    order = np.argsort(mixed)
    if policy.shapes == "pack":
        return _pack(order, tokens[codes[order]], policy)
    if policy.shapes == "pad":
        return _fill([order], sizes[:1], policy, seed, epoch)
    order = order[np.argsort(codes[order], kind="stable")]
    ends = np.cumsum(np.bincount(codes, minlength=len(tokens)))
    return _fill(np.split(order, ends[:-1]), sizes, policy, seed, epoch)


def salt(seed: int, *parts: int | str) -> np.uint64:
    """64 bits that follow from a seed and what it is used for."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def digest_of(keys: Keys) -> str:
    """16 hex digits that name a set of samples, whatever their order."""
    mixed = _mix(keys.copy())
    folded = (len(keys), int(mixed.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(mixed, initial=0)))
    return hashlib.sha256(repr(folded).encode()).hexdigest()[:16]


def _mix(x: Keys) -> Keys:
    """The finaliser of splitmix64, in place: close inputs become far apart."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def _fill(groups: list[Indices], sizes: Indices, policy: BatchPolicy, seed: int, epoch: int) -> EpochSchedule:
    """Whole steps of each group, all steps shuffled together."""
    world_size = policy.world_size
    rows: list[Indices] = []
    per_rank: list[Indices] = []
    lost = {"drop": 0, "pad": 0, "repeat": 0}
    for group, size in zip(groups, sizes.tolist(), strict=True):
        step = size * world_size
        whole, rest = divmod(len(group), step)
        rows.append(group[: whole * step])
        if rest and policy.tail == "drop":
            lost["drop"] += rest
        elif rest:
            lost[policy.tail] += step - rest
            rows.append(_last_step(group, rest, step, policy.tail))
            whole += 1
        per_rank.append(np.full(whole, size, dtype=np.int64))
    size_of_step = np.concatenate([np.zeros(0, dtype=np.int64), *per_rank])
    starts = np.cumsum(size_of_step * world_size) - size_of_step * world_size
    bounds = starts[:, None] + size_of_step[:, None] * np.arange(world_size + 1)
    rng = np.random.Generator(np.random.Philox(key=int(salt(seed, epoch, "steps"))))
    return EpochSchedule(
        rows=np.concatenate([np.zeros(0, dtype=np.int64), *rows]),
        bounds=bounds[rng.permutation(len(bounds))],
        dropped=lost["drop"],
        padded=lost["pad"],
        repeated=lost["repeat"],
    )


def _last_step(group: Indices, rest: int, step: int, tail: Tail) -> Indices:
    if tail == "repeat":
        return np.concatenate([group[-rest:], np.resize(group, step - rest)])
    last = np.full(step, BLANK, dtype=np.int64)
    last[np.arange(rest) * step // rest] = group[-rest:]  # spread, so that every rank has its share
    return last


def _pack(order: Indices, tokens: Indices, policy: BatchPolicy) -> EpochSchedule:
    """Batches of consecutive samples, each as many as the budget holds."""
    ends = np.cumsum(tokens)
    following = np.searchsorted(ends, ends - tokens + (policy.tokens_per_batch or 0), side="right")
    edges, at = [0], 0
    while at < len(order):
        at = int(following[at])
        edges.append(at)
    num_batches, world_size = len(edges) - 1, policy.world_size
    missing = -num_batches % world_size
    dropped = repeated = 0
    if missing and policy.tail == "repeat" and num_batches:
        again = [order[edges[i % num_batches] : edges[i % num_batches + 1]] for i in range(missing)]
        edges += (edges[-1] + np.cumsum([len(batch) for batch in again])).tolist()
        order = np.concatenate([order, *again])
        repeated = edges[-1] - edges[num_batches]
    elif missing:
        edges = edges[: num_batches // world_size * world_size + 1]
        dropped = len(order) - edges[-1]
    starts = np.arange(0, len(edges) - 1, world_size)
    bounds = np.asarray(edges, dtype=np.int64)[starts[:, None] + np.arange(world_size + 1)]
    return EpochSchedule(rows=order, bounds=bounds, dropped=dropped, repeated=repeated)

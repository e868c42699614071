"""The schedule of an epoch: which samples form which batch on which rank.

A sample's position follows from its id, the seed and the epoch. How shards were cut and how rows are stored does not
matter. Ten million rows take seconds (``python -m tests.bench.loader --only schedule``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.loader.schedule.keys import BucketCodes, Indices, Keys, derive_seed, mix_bits
from pipeline.loader.schedule.policy import BatchPolicy, Tail, TokenBudget

BLANK = -1
"""Row of a place in a batch that no sample fills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochSchedule:
    """The batches of an epoch. Step ``s`` of rank ``r`` is ``rows[bounds[s, r]:bounds[s, r + 1]]``."""

    rows: Indices
    """int64 [places]: rows of the samples, batch by batch; ``BLANK`` where a place stays empty."""
    bounds: Indices
    """int64 [steps, world_size + 1]: positions in ``rows`` where the ranks' batches begin and end."""
    dropped: int = 0
    """Number of samples that this epoch leaves out."""
    padded: int = 0
    """Number of blank places."""
    repeated: int = 0
    """Number of places that hold a sample for the second time."""

    def __len__(self) -> int:
        return len(self.bounds)

    def batch(self, step: int, rank: int) -> Indices:
        """Return the rows of one rank's batch."""
        return self.rows[self.bounds[step, rank] : self.bounds[step, rank + 1]]

    def global_batch(self, step: int) -> Indices:
        """Return the rows of one step on all ranks."""
        return self.rows[self.bounds[step, 0] : self.bounds[step, -1]]


def schedule_epoch(
    keys: Keys, codes: BucketCodes, tokens: Indices, policy: BatchPolicy, seed: int, epoch: int
) -> EpochSchedule:
    """Place every sample in one batch on one rank, except for samples in incomplete steps (see ``Tail``).

    keys: uint64 [n]. codes: uint16 [n].
    tokens: int64 [buckets], tokens of one sample; the order of the buckets must follow from the buckets alone.
    """
    if not len(keys):
        return EpochSchedule(rows=np.zeros(0, np.int64), bounds=np.zeros((0, policy.world_size + 1), np.int64))
    sizes = policy.batch_sizes(tokens)
    order = np.argsort(mix_bits(keys ^ derive_seed(seed, epoch))) if policy.shuffle else np.arange(len(keys))
    if policy.shapes == "pack":
        return _packed_steps(order, tokens[codes[order]], policy)
    if policy.shapes == "pad":
        return _equal_steps([order], sizes[:1], policy, seed, epoch)
    order = order[np.argsort(codes[order], kind="stable")]
    ends = np.cumsum(np.bincount(codes, minlength=len(tokens)))
    return _equal_steps(np.split(order, ends[:-1]), sizes, policy, seed, epoch)


def _equal_steps(groups: list[Indices], sizes: Indices, policy: BatchPolicy, seed: int, epoch: int) -> EpochSchedule:
    """Cut each group into steps in which all ranks have batches of the same size, then order the steps."""
    # Shapes: groups[b] is int64 [samples of bucket b], in shuffled order; sizes is int64 [buckets], samples per batch.
    # Invariant: rows is the groups one after another, each cut to whole steps; only the rows of bounds are shuffled, if any.
    # Example: groups [5 7 1 3], size 1, 2 ranks -> rows [5 7 1 3], bounds [[0 1 2] [2 3 4]] in either order.
    world_size = policy.world_size
    rows: list[Indices] = []
    sizes_by_group: list[Indices] = []
    affected = {"drop": 0, "pad": 0, "repeat": 0}
    for group, size in zip(groups, sizes.tolist(), strict=True):
        step_size = size * world_size
        num_steps, rest = divmod(len(group), step_size)
        rows.append(group[: num_steps * step_size])
        if rest and policy.tail == "drop":
            affected["drop"] += rest
        elif rest:
            affected[policy.tail] += step_size - rest
            rows.append(_last_step(group, rest, step_size, policy.tail))
            num_steps += 1
        sizes_by_group.append(np.full(num_steps, size, dtype=np.int64))
    batch_size_of_step = np.concatenate([np.zeros(0, dtype=np.int64), *sizes_by_group])
    starts = np.cumsum(batch_size_of_step * world_size) - batch_size_of_step * world_size
    bounds = starts[:, None] + batch_size_of_step[:, None] * np.arange(world_size + 1)
    if policy.shuffle:
        rng = np.random.Generator(np.random.Philox(key=int(derive_seed(seed, epoch, "steps"))))
        bounds = bounds[rng.permutation(len(bounds))]
    return EpochSchedule(
        rows=np.concatenate([np.zeros(0, dtype=np.int64), *rows]),
        bounds=bounds,
        dropped=affected["drop"],
        padded=affected["pad"],
        repeated=affected["repeat"],
    )


def _last_step(group: Indices, rest: int, step_size: int, tail: Tail) -> Indices:
    """Fill up the incomplete step that holds the last ``rest`` samples of a group. Returns int64 [step_size]."""
    if tail == "repeat":
        return np.concatenate([group[-rest:], np.resize(group, step_size - rest)])
    last = np.full(step_size, BLANK, dtype=np.int64)
    last[np.arange(rest) * step_size // rest] = group[-rest:]  # spread, so that every rank has its share of blanks
    return last


def _packed_steps(order: Indices, tokens: Indices, policy: BatchPolicy) -> EpochSchedule:
    """Put consecutive samples into a batch until the token budget is full."""
    # Shapes: order is int64 [n], rows in shuffled order; tokens is int64 [n], the tokens of those samples.
    # Invariant: batch i is order[edges[i]:edges[i + 1]]; it is as long as the budget allows, and at least 1.
    # Example: tokens [4 4 4 2], budget 8 -> next_edge [2 3 4 4], edges [0 2 4]; with 2 ranks bounds [[0 2 4]].
    assert isinstance(policy.budget, TokenBudget) and tokens.max() <= policy.budget.tokens
    ends = np.cumsum(tokens)
    next_edge = np.searchsorted(ends, ends - tokens + policy.budget.tokens, side="right")
    edges = [0]
    while edges[-1] < len(order):
        edges.append(int(next_edge[edges[-1]]))
    num_batches, world_size = len(edges) - 1, policy.world_size
    missing = -num_batches % world_size
    dropped = repeated = 0
    if missing and policy.tail == "repeat":
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

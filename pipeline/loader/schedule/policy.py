"""How samples form batches: the size of a batch, and the rules for mixed shapes and incomplete steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader.schedule.keys import Indices

Tail = Literal["drop", "pad", "repeat"]
"""How samples that fill no whole step are treated: left out, or the step is filled with blanks or repeated samples."""
Shapes = Literal["bucket", "pad", "pack"]
"""One latent shape per batch (``bucket``), or mixed shapes that are padded or packed into one row of tokens."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """A batch has this number of samples."""

    samples: int


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """A batch has at most this number of latent tokens (t x h x w, divided by the patch)."""

    tokens: int

    def check_fits(self, tokens: Indices, names: list[str]) -> None:
        """Raise ConfigError if one sample of a bucket exceeds the budget. ``tokens``: int64 [buckets]."""
        for name, count in zip(names, tokens.tolist(), strict=True):
            if count > self.tokens:
                raise ConfigError(
                    f"a sample of bucket {name} has {count} tokens, more than tokens_per_batch={self.tokens}. "
                    "Raise tokens_per_batch, or leave these samples out with where="
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPolicy:
    """The rules by which samples form the batches of all ranks."""

    budget: BatchSize | TokenBudget
    """Size of one rank's batch."""
    world_size: int = 1
    tail: Tail = "drop"
    shapes: Shapes = "bucket"
    shuffle: bool = True
    """Each epoch has an order of its own. Otherwise all have the order of the samples' rows, bucket by bucket."""
    groups: tuple[tuple[str, float], ...] = ()
    """Names and weights of the bucket groups to mix; empty to take all samples as one set."""

    def batch_sizes(self, tokens: Indices) -> Indices:
        """Return the number of samples in one rank's batch for each bucket, int64 [buckets].

        tokens: int64 [buckets], the tokens of one sample; none of them exceeds the budget.
        """
        if isinstance(self.budget, BatchSize):
            return np.full(len(tokens), self.budget.samples)
        if self.shapes == "pad":  # any sample may be padded to the largest bucket
            tokens = np.full(len(tokens), tokens.max(initial=1))
        sizes: Indices = self.budget.tokens // tokens
        return sizes

"""Hashes of samples: shuffle keys, seeds derived from other seeds, and digests of sets of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
"""Rows, counts or positions."""
Keys = npt.NDArray[np.uint64]
"""Shuffle keys, uint64 [n]: evenly distributed numbers that follow from the samples' ids."""
BucketCodes = npt.NDArray[np.uint16]
"""Number of each sample's bucket in a list of buckets, uint16 [n]."""


def derive_seed(seed: int, *purpose: int | str) -> np.uint64:
    """Return 64 bits that follow from a seed and the purpose that they are for."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    derived: np.uint64 = np.uint64(int.from_bytes(digest[:8], "little"))
    return derived


def digest_of(keys: Keys) -> str:
    """Return 16 hex digits that identify a set of samples, in whatever order they are stored."""
    mixed = mix_bits(keys.copy())
    folded = (len(keys), int(mixed.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(mixed, initial=0)))
    return hashlib.sha256(repr(folded).encode()).hexdigest()[:16]


def digest_of_parts(parts: Sequence[tuple[int, Keys]]) -> str:
    """Return 16 hex digits that identify numbered sets of samples."""
    named = [(number, digest_of(keys)) for number, keys in parts]
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def short_digest(content: str | bytes) -> str:
    """Return 8 hex digits that stand for a text or for bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:8]


def mix_bits(x: Keys) -> Keys:
    """Spread close numbers far apart, in place.

    Source: the finalizer of splitmix64, https://prng.di.unimi.it/splitmix64.c.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x

"""The latent shapes of an output, for formats that cannot hold several of them."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.progress.formatting import number


def count_buckets(data: LatentDataset) -> Counter[tuple[int, int, int]]:
    """Return the number of samples by pixels ``(num_frames, height, width)``."""
    sizes = np.bincount(data.samples.codes, minlength=len(data.samples.buckets))
    counts: Counter[tuple[int, int, int]] = Counter()
    for shape, size in zip(data.samples.buckets, sizes.tolist(), strict=True):
        counts[(shape.num_frames, shape.height, shape.width)] += size
    return +counts


def require_one_shape(data: LatentDataset, target: str) -> None:
    """Raise ConfigError if there are clips of several sizes; it names them and the filters that select one."""
    counts = count_buckets(data)
    if len(counts) > 1:
        raise ConfigError(f"{target} holds clips of one size only. Choose one with --where:\n" + _filters(counts))


def require_one_length(data: LatentDataset, target: str) -> None:
    """Raise ConfigError if clips of one height and width have several lengths."""
    lengths: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    counts = count_buckets(data)
    for num_frames, height, width in counts:
        lengths[height, width].add(num_frames)
    if any(len(found) > 1 for found in lengths.values()):
        raise ConfigError(
            f"{target} puts clips of one height and width into a batch, so they must have one length. Choose one with "
            "--where:\n" + _filters(counts)
        )


def _filters(counts: Counter[tuple[int, int, int]]) -> str:
    lines = [
        f"  'num_frames == {frames} and height == {height} and width == {width}'  {number(count, 'sample')}"
        for (frames, height, width), count in counts.most_common(20)
    ]
    return "\n".join(lines)

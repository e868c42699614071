"""The sizes of clips: buckets, and groups of buckets for several resolutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import ConfigError
from stvae.geometry import Geometry, ShapeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The size of a clip in pixels, and so one latent shape. Written HxWxT (``480x848x51``), in a group GROUP=HxWxT."""

    num_frames: int
    height: int
    width: int
    group: str = ""
    """Name of the bucket's group; empty without groups. The same size in two groups makes two buckets."""

    def __str__(self) -> str:
        return f"{self.group}={self.size}" if self.group else self.size

    @property
    def size(self) -> str:
        """The size without the group: HxWxT."""
        return f"{self.height}x{self.width}x{self.num_frames}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The bucket written HxWxT or GROUP=HxWxT; ConfigError otherwise."""
        match = re.fullmatch(r"(?:(\w[\w.-]*)=)?(\d+)x(\d+)x(\d+)", text.strip(), re.ASCII)
        if not match:
            hint = "; groups are separated by ';' and named like 480p" if "=" in text else ""
            raise ConfigError(f"bucket '{text}' is not HEIGHTxWIDTHxFRAMES, for example 480x848x51{hint}")
        height, width, num_frames = map(int, match.groups()[1:])
        return cls(num_frames, height, width, match[1] or "")


def split_buckets(text: str) -> list[str]:
    """The texts of the buckets in ``HxWxT,...`` or ``GROUP=HxWxT,...;GROUP=HxWxT,...``, each with its group."""
    texts: list[str] = []
    for part in text.split(";"):
        group, equals, sizes = part.partition("=") if "=" in part else ("", "", part)
        texts += [f"{group.strip()}{equals}{size.strip()}" for size in sizes.split(",")]
    return texts


def group_buckets(buckets: Sequence[Bucket]) -> dict[str, tuple[Bucket, ...]]:
    """The buckets by the name of their group, in the order of their first buckets; without groups all under ``""``."""
    names = dict.fromkeys(bucket.group for bucket in buckets)
    return {name: tuple(bucket for bucket in buckets if bucket.group == name) for name in names}


def check_buckets(buckets: Sequence[Bucket]) -> None:
    """Raise ConfigError unless there are buckets, none is given twice, and all or none of them have a group."""
    if not buckets:
        raise ConfigError("no buckets: give at least one, for example --buckets 480x848x51")
    if len(set(buckets)) < len(buckets):
        raise ConfigError(f"a bucket is given twice: {', '.join(map(str, buckets))}")
    groups = group_buckets(buckets)
    if "" in groups and len(groups) > 1:
        raise ConfigError(
            f"either all buckets have a group or none, but {', '.join(map(str, groups['']))} "
            f"{'has' if len(groups['']) == 1 else 'have'} none: write --buckets '240p=HxWxT,...;480p=HxWxT,...'"
        )


def check_sizes(buckets: Sequence[Bucket], geometry: Geometry) -> None:
    """Raise ConfigError, which names the nearest size that fits, for a bucket that the VAE cannot encode."""
    for bucket in buckets:
        try:
            geometry.check((bucket.num_frames, bucket.height, bucket.width))
        except ShapeError as error:
            raise ConfigError(f"bucket {bucket} does not fit the VAE: {error}") from error


def one_per_bucket(values: Sequence[T], buckets: Sequence[Bucket]) -> tuple[T, ...] | None:
    """One value for every bucket, from one value for all, for each group or for each bucket; None for another number."""
    groups = list(group_buckets(buckets))
    if len(values) == len(buckets):
        return tuple(values)
    if len(values) == 1:
        return tuple(values) * len(buckets)
    if len(values) == len(groups):
        return tuple(values[groups.index(bucket.group)] for bucket in buckets)
    return None


def numbers_needed(buckets: Sequence[Bucket]) -> str:
    """The numbers of values that ``one_per_bucket`` takes, for messages."""
    groups = group_buckets(buckets)
    per_group = f"each of {len(groups)} groups or of " if len(groups) > 1 else "each of "
    return f"or one for {per_group}{len(buckets)} buckets"

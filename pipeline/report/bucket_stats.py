"""Counts of clips by bucket, and of outcomes by group of buckets."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.schema import bucket_names


@dataclass(kw_only=True, slots=True)
class BucketStats:
    """Contents of one bucket."""

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    size_bytes: int = 0
    pixel_bytes: int = 0
    """Size of its frames as raw RGB."""
    latent_shape: tuple[int, ...] = ()
    """Shape (C, t, h, w); the smallest where shortened clips differ."""


@dataclass(kw_only=True, slots=True)
class GroupStats:
    """Outcomes of the windows of one group of buckets. Items whose windows are not known have no group."""

    clips: int = 0
    skips: int = 0
    rejects: int = 0
    size_bytes: int = 0
    """Size of its latents."""


def add_buckets(buckets: dict[str, BucketStats], samples: pa.Table) -> None:
    """Add the rows of clips, by ``str(Bucket)``."""
    pixels = pc.multiply(pc.multiply(samples["height"].cast(pa.int64()), samples["width"]), samples["num_frames"])
    samples = samples.append_column("pixel_bytes", pc.multiply(pixels, 3)).append_column(
        "seconds", clip_lengths(samples)
    )
    sums = ("num_frames", "nbytes", "pixel_bytes", "seconds")
    shape = ("latent_c", "latent_t", "latent_h", "latent_w")
    columns = [("id", "count"), *((name, "sum") for name in sums), *((name, "min") for name in shape)]
    samples = samples.append_column("name", bucket_names(samples))
    for row in samples.group_by("name").aggregate(columns).to_pylist():
        bucket = buckets[row["name"]]
        bucket.clips += row["id_count"]
        bucket.frames += row["num_frames_sum"]
        bucket.size_bytes += row["nbytes_sum"]
        bucket.pixel_bytes += row["pixel_bytes_sum"]
        bucket.seconds += row["seconds_sum"] or 0.0
        bucket.latent_shape = tuple(row[f"{name}_min"] for name in shape)


def add_groups(groups: dict[str, GroupStats], table: pa.Table) -> None:
    """Add the rows of windows of groups, by the group's name."""
    columns = [*((name, "count") for name in ("shard", "skip_reason", "reject_reason")), ("nbytes", "sum")]
    for row in table.filter(pc.field("group").is_valid()).group_by("group").aggregate(columns).to_pylist():
        group = groups[row["group"]]
        group.clips += row["shard_count"]
        group.skips += row["skip_reason_count"]
        group.rejects += row["reject_reason_count"]
        group.size_bytes += row["nbytes_sum"] or 0


def clip_lengths(samples: pa.Table) -> pa.ChunkedArray:
    """Return the lengths of clips in seconds; null for images."""
    lengths = pc.subtract(samples["end_s"], samples["start_s"])
    return pc.if_else(samples["fps"].is_valid(), lengths, pa.scalar(None, pa.float64()))

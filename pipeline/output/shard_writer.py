"""One output shard: a deterministic tar of samples, and the unit metadata whose appearance commits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.bucket import Bucket
from pipeline.errors import Reject, Rejected
from pipeline.output.counts import Counts, LatentSums
from pipeline.output.members import CHECKSUM, SCALE, SPAN
from pipeline.output.rows import Row, RowBuilder
from pipeline.output.schema import INT8_ERRORS, ROW_ORDER
from pipeline.output.serialization import Array, Packed, pack_latent
from pipeline.output.tar_writer import TarWriter
from pipeline.output.unit_metadata import unit_metadata_facts, unit_metadata_path
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.store import Store
from pipeline.video.outcomes import Clip, RejectedWindow
from pipeline.video.windows import Skip, VideoFacts
from stvae.card import Card

ROWS_PER_BATCH = 4096
"""Rows that are kept as dicts before they become an Arrow batch, which takes a tenth of their memory."""

Writer = TypeVar("Writer", bound="UnitWriter")


class UnitWriter:
    """Collects the rows of a unit, and arrays of them in a tar. ``commit`` makes all of them visible at once."""

    def __init__(self, path: Path, unit: Unit, schema: pa.Schema, order: Sequence[tuple[str, str]], place: str) -> None:
        """``order``: how the rows are sorted. ``place``: the column that only rows with arrays in the tar have."""
        self.counts = Counts()
        self._path = path
        self._unit = unit
        self._schema = schema
        self._order = order
        self._place = place
        self._tar = TarWriter(path)
        self._rows: list[Row] = []
        self._batches: list[pa.RecordBatch] = []

    def commit(self, store: Store, notes: dict[str, str], is_outdated: Callable[[], bool] = lambda: False) -> str:
        """Upload the tar, then the unit metadata, which commits the unit.

        Returns ``committed``, ``lost`` if another attempt was first, or ``outdated`` without a commit. ``notes`` go into the
        unit's facts. ``is_outdated`` is asked when the tar is uploaded, since that may take long. The tar of an outdated
        unit stays until the job ends, because another attempt may be about to commit the same bytes.
        """
        sha256, size_bytes = self._tar.close()
        failpoint(Failpoint.TAR_WRITTEN)
        shard = f"shards/{self._unit.name}-{sha256[:8]}.tar" if self.counts.samples else None
        metadata = self._unit_metadata(shard, {"sha256": sha256, "size_bytes": str(size_bytes)} | notes)
        path = unit_metadata_path(self._unit.name)
        if store.size(path) is None:
            if shard:
                store.put_new(shard, self._path)  # if it exists, it has the same bytes: its name is their hash
                failpoint(Failpoint.TAR_UPLOADED)
                if is_outdated():
                    return "outdated"
            if store.put_new(path, metadata):
                failpoint(Failpoint.UNIT_COMMITTED)
                self.counts.size_bytes = size_bytes if shard else 0
                return "committed"
        committed = store.get(path)
        if committed == metadata:  # perhaps our own, if the store's answer was lost
            self.counts.size_bytes = size_bytes if shard else 0
            return "committed"
        if shard and unit_metadata_facts(read_parquet(committed)).get("shard") != shard:
            store.delete(shard)
        return "lost"

    def rows(self) -> pa.Table:
        """The rows so far, in the order in which they were added, without the path of the shard."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self._schema)

    def __enter__(self: Writer) -> Writer:
        self._tar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tar.__exit__(*error)

    def _facts(self) -> dict[str, str]:
        """Further facts of the unit, which go into the metadata of its Parquet file."""
        return {}

    def _add_array(self, name: str, prefix: str, packed: Packed) -> Row:
        """Append an array to the tar, and its scales if it has some; returns their columns, which begin with ``prefix``.

        ``name``: the file's, without suffix.
        """
        offset = self._tar.add(f"{name}.{packed.suffix}", packed.payload)
        tensor = packed.payload[packed.header_bytes :]
        span = (offset, len(packed.payload), offset + packed.header_bytes, len(tensor))
        columns = {f"{prefix}{column}": value for column, value in zip(SPAN, span, strict=True)}
        columns |= {f"{prefix}{CHECKSUM}": int(google_crc32c.value(tensor))}
        if packed.scales is not None:
            columns |= self._add_array(f"{name}_{SCALE}", f"{prefix}{SCALE}_", packed.scales)
        return columns

    def _reject(self, row: Row, reject: Reject) -> None:
        self._add(
            row | {"reject_stage": reject.stage, "reject_reason": reject.reason, "reject_message": reject.message}
        )
        self.counts.rejects[reject.name] += 1

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _unit_metadata(self, shard: str | None, facts: dict[str, str]) -> bytes:
        """The unit's rows in order as Parquet. ``facts`` of the shard go into the file's own metadata."""
        self._flush()
        schema = self._schema
        table = pa.Table.from_batches(self._batches, schema=schema).combine_chunks()
        table = table.sort_by(list(self._order))
        is_stored = table[self._place].is_valid()
        shards = pc.if_else(is_stored, pa.scalar(shard, pa.string()), pa.scalar(None, pa.string()))
        table = table.set_column(table.column_names.index("shard"), schema.field("shard"), shards)
        metadata = {
            "unit": self._unit.name,
            "num_samples": str(self.counts.samples),
            "num_skips": str(self.counts.skips.total()),
            "num_rejects": str(self.counts.rejects.total()),
        }
        metadata |= self._facts()
        if shard:
            metadata |= {"shard": shard} | facts
        return write_parquet(table.replace_schema_metadata(metadata))


class ShardWriter(UnitWriter):
    """Collects a unit's samples, skips and rejects."""

    def __init__(self, path: Path, unit: Unit, recipe: Recipe, card: Card, user_columns: pa.Schema) -> None:
        self._builder = RowBuilder(unit, recipe, card, user_columns)
        super().__init__(path, unit, self._builder.schema, ROW_ORDER, place="offset")
        self._latent_sums = LatentSums(card.latent_channels)

    def add_sample(
        self, item: Item, facts: VideoFacts, clip: Clip, latents: dict[str, Array], encode_path: str
    ) -> None:
        """Store a clip's members in the recipe's type, or reject the clip if one of them does not fit that type.

        ``latents``: by name of the member, float32 ``[2C,t,h,w]`` or ``[C,t,h,w]``.
        """
        row = self._builder.clip(item, clip.window, facts, clip.decoder)
        self._add_latents(item, row, clip.window.bucket.num_frames, latents, {"encode_path": encode_path})

    def add_imported(self, item: Item, bucket: Bucket, latent_Cthw: Array, columns: Row) -> None:
        """Store a raw latent, float32 ``[C,t,h,w]``, that another program made. ``columns``: others that are known."""
        row = self._builder.window(item, 0, None) | {
            "bucket": bucket.size,
            "num_frames": bucket.num_frames,
            "height": bucket.height,
            "width": bucket.width,
        }
        self._add_latents(item, row, bucket.num_frames, {"latent": latent_Cthw}, columns)

    def add_skip(self, item: Item, facts: VideoFacts | None, skip: Skip) -> None:
        """Record a window that the recipe leaves out."""
        row = self._builder.window(item, skip.index, facts, skip.scene, skip.group)
        self._add(row | {"skip_reason": skip.reason})
        self.counts.skips[skip.reason] += 1

    def add_reject(self, item: Item, facts: VideoFacts | None, rejected: RejectedWindow) -> None:
        """Record a window that could not become a sample."""
        row = self._builder.window(item, rejected.index, facts, rejected.scene, rejected.group)
        self._reject(row, rejected.reject)

    def _add_latents(self, item: Item, row: Row, num_frames: int, latents: dict[str, Array], columns: Row) -> None:
        """Add a sample, or a reject if a member does not fit the stored type. ``columns`` replace those of the latent."""
        builder = self._builder
        try:
            packed = [pack_latent(latents[member.name], builder.recipe.dtype) for member in builder.members]
        except Rejected as rejected:
            self._reject(row, rejected.reject)
            return
        row |= builder.latent_columns(num_frames, packed[0].stored.shape[1:])
        for member, part in zip(builder.members, packed, strict=True):
            row |= self._add_array(f"{row['id']}.{member.name}", member.prefix, part)
        row |= self._add_statistics(packed[0].stored) | columns
        if packed[0].scales is not None:
            error = np.abs(packed[0].stored.astype(np.float64) - latents[builder.members[0].name])
            row |= dict(zip(INT8_ERRORS, (float(error.max()), float(error.mean())), strict=True))
        self._tar.add(f"{row['id']}.json", builder.sample_json(row))
        self._add(row)
        self.counts.samples += 1
        self.counts.frames += num_frames
        self.counts.captions += bool(item.caption)
        failpoint(Failpoint.SAMPLE_WRITTEN)

    def _add_statistics(self, stored_Cthw: Array) -> Row:
        """Add the mean of a stored latent to the sums of the unit; the columns with the sample's own statistics."""
        mean = self._latent_sums.add(stored_Cthw)
        return {
            "latent_mean": float(mean.mean()),
            "latent_std": float(mean.std()),
            "latent_absmax": float(np.abs(mean).max()),
        }

    def _facts(self) -> dict[str, str]:
        return self._latent_sums.to_facts()

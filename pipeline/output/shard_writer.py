"""One output shard: a deterministic tar of latents, and the sidecar whose appearance commits it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reject, Rejected
from pipeline.output import schema as columns
from pipeline.output.counts import Counts
from pipeline.output.serialization import Array, pack_latent, payload_bytes
from pipeline.output.tar_writer import TarWriter, member_bytes
from pipeline.output.unit_metadata import unit_metadata_facts, unit_metadata_path
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.storage.failpoints import Failpoint, failpoint
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.store import Store
from pipeline.video.decoders import Clip, RejectedWindow
from pipeline.video.windows import Skip, VideoFacts, Window
from stvae.card import Card

ROWS_PER_BATCH = 4096
CRC32C, LONG_NUMBER, SHORT_NUMBER = 4_000_000_000, 0.1234567890123456, 3.1234
"""As many digits as a checksum, a mean and a stored value have as a rule."""

Row = dict[str, Any]


def sample_id(unit: Unit, item: Item, window: int) -> str:
    """20 hex digits that name one window of one item, whatever its key may contain."""
    text = json.dumps([unit.source, item.ordinal, item.key, window, 0])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class ShardWriter:
    """Collects a unit's samples, skips and rejects; ``commit`` makes them visible, all at once."""

    def __init__(self, path: Path, unit: Unit, recipe: Recipe, card: Card, user_columns: pa.Schema) -> None:
        self.counts = Counts()
        self.size_bytes = 0
        """Of the tar, once it is committed; 0 where there is none."""
        self._path = path
        self._unit = unit
        self._recipe = recipe
        self._card = card
        self._schema = columns.schema(user_columns)
        self._tar = TarWriter(path)
        self._rows: list[Row] = []
        self._batches: list[pa.RecordBatch] = []
        self._moments = np.zeros((2, card.latent_channels))  # sum and sum of squares per channel
        self._cells = 0

    def add_sample(
        self, item: Item, facts: VideoFacts, clip: Clip, latents: dict[str, Array], encode_path: str
    ) -> None:
        """A clip's members in the recipe's type: ``latent``, float32 ``[2C,t,h,w]`` or ``[C,t,h,w]``, and where the recipe
        asks for them ``first`` and ``last``, those frames encoded alone. A reject if one does not fit the type."""
        window = clip.window
        row = self._row(item, window.index, facts) | _clip_columns(clip, facts)
        try:
            packed = {name: pack_latent(latent, self._recipe.dtype) for name, latent in latents.items()}
        except Rejected as rejected:
            self._reject(row, rejected.reject)
            return
        for name, (_, payload, header_bytes, suffix) in packed.items():
            prefix = "" if name == "latent" else f"{name}_"
            offset = self._tar.add(f"{row['id']}.{name}.{suffix}", payload)
            row |= {
                f"{prefix}offset": offset,
                f"{prefix}nbytes": len(payload),
                f"{prefix}tensor_offset": offset + header_bytes,
                f"{prefix}tensor_nbytes": len(payload) - header_bytes,
                f"{prefix}crc32c": int(google_crc32c.value(payload[header_bytes:])),
            }
        stored = packed["latent"][0]
        mean = stored[: self._card.latent_channels].astype(np.float64)
        self._moments += mean.sum(axis=(1, 2, 3)), np.square(mean).sum(axis=(1, 2, 3))
        self._cells += int(np.prod(mean.shape[1:]))
        row |= {
            "latent_mean": float(mean.mean()),
            "latent_std": float(mean.std()),
            "latent_absmax": float(np.abs(mean).max()),
            "encode_path": encode_path,
        } | self._latent_columns(window, stored.shape)
        self._tar.add(f"{row['id']}.json", _sample_json(row, self._card))
        self._add(row)
        self.counts.samples += 1
        self.counts.frames += window.bucket.num_frames
        failpoint(Failpoint.SAMPLE_WRITTEN)

    def sample_bytes(self, item: Item, facts: VideoFacts, window: Window) -> int:
        """What ``add_sample`` would add to the tar. Exact but for the digits of numbers that only encoding tells, which
        may take the JSON over the edge of a block of 512 bytes."""
        recipe, card = self._recipe, self._card
        channels = card.latent_channels if recipe.store == "mean" else card.stored_channels
        size = (window.bucket.num_frames, window.bucket.height, window.bucket.width)
        shapes = [(channels, *card.geometry.latent_size(size))]
        shapes += [(channels, *card.geometry.latent_size((1, *size[1:])))] * len(recipe.conditioning_frames)
        decoder = "pyav" if facts.decord_refusal else recipe.decoder
        clip = Clip(window=window, frames_THWC=np.empty(0, np.uint8), decoder=decoder)
        row = self._row(item, window.index, facts) | _clip_columns(clip, facts)
        row |= self._latent_columns(window, shapes[0]) | {
            f"{name}_crc32c": CRC32C for name in recipe.conditioning_frames
        }
        row |= dict.fromkeys(("latent_mean", "latent_std"), LONG_NUMBER)
        row |= {"crc32c": CRC32C, "latent_absmax": SHORT_NUMBER, "encode_path": "whole"}
        members = [payload_bytes(shape, recipe.dtype) for shape in shapes]
        return sum(map(member_bytes, [*members, len(_sample_json(row, card))]))

    def add_skip(self, item: Item, facts: VideoFacts | None, skip: Skip) -> None:
        """A window that the recipe leaves out."""
        self._add(self._row(item, skip.index, facts) | {"skip_reason": skip.reason})
        self.counts.skips[skip.reason] += 1

    def add_reject(self, item: Item, facts: VideoFacts | None, rejected: RejectedWindow) -> None:
        """A window that is at fault."""
        self._reject(self._row(item, rejected.index, facts), rejected.reject)

    def commit(self, store: Store, notes: dict[str, str]) -> str:
        """Upload the tar, then the sidecar: the commit. What happened: ``committed`` or ``lost`` (another attempt won)."""
        sha256, size_bytes = self._tar.close()
        failpoint(Failpoint.TAR_WRITTEN)
        shard = f"shards/{self._unit.name}-{sha256[:8]}.tar" if self.counts.samples else None
        self.size_bytes = size_bytes if shard else 0
        sidecar = self._sidecar(shard, {"sha256": sha256, "size_bytes": str(size_bytes)} | notes)
        path = unit_metadata_path(self._unit.name)
        if store.size(path) is None:
            if shard:
                store.put_new(shard, self._path)  # there already: the same bytes, since its name is their hash
                failpoint(Failpoint.TAR_UPLOADED)
            if store.put_new(path, sidecar):
                failpoint(Failpoint.UNIT_COMMITTED)
                return "committed"
        theirs = store.get(path)
        if theirs == sidecar:  # perhaps ours, if the answer was lost
            return "committed"
        if shard and unit_metadata_facts(read_parquet(theirs)).get("shard") != shard:
            store.delete(shard)
        return "lost"

    def __enter__(self) -> ShardWriter:
        self._tar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tar.__exit__(*error)

    def _row(self, item: Item, window: int, facts: VideoFacts | None) -> Row:
        row: Row = dict.fromkeys(self._schema.names)
        row |= {
            "id": sample_id(self._unit, item, window),
            "source": self._unit.source,
            "ordinal": item.ordinal,
            "key": item.key,
            "window": window,
            "uri": item.uri,
            "caption": item.caption,
            "source_size": item.facts and item.facts.size,
            "source_etag": item.facts and item.facts.etag,
            "recipe": self._recipe.fingerprint,
        }
        if facts is not None:
            row |= {
                "src_width": facts.width,
                "src_height": facts.height,
                "src_fps": facts.fps,
                "src_num_frames": len(facts.pts),
                "src_duration_s": facts.duration_s,
                "src_codec": facts.codec,
                "rotation": facts.rotation,
                "hdr": facts.hdr,
            }
        return row | item.meta

    def _add(self, row: Row | None) -> None:
        """Keep a row, or with None what is kept so far, in a form that takes a tenth of a dict's memory."""
        if row is not None:
            self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH or (row is None and self._rows):
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _reject(self, row: Row, reject: Reject) -> None:
        self._add(
            row | {"reject_stage": reject.stage, "reject_reason": reject.reason, "reject_message": reject.message}
        )
        self.counts.rejects[reject.name] += 1

    def _latent_columns(self, window: Window, shape: tuple[int, ...]) -> Row:
        geometry = self._card.geometry
        sizes = (self._card.latent_channels, *shape[1:])
        return dict(zip(("latent_c", "latent_t", "latent_h", "latent_w"), sizes, strict=True)) | {
            "dtype": self._recipe.dtype,
            "store": self._recipe.store if self._card.has_moments else "mean",
            "pad_t": 0,
            "pad_h": 0,
            "pad_w": 0,
            "pad_frames": geometry.pad_frames(window.bucket.num_frames),
            "chunk_frames": geometry.chunk_frames or window.bucket.num_frames,
            "latents_per_chunk": geometry.latents_per_chunk(window.bucket.num_frames),
        }

    def _sidecar(self, shard: str | None, facts: dict[str, str]) -> bytes:
        self._add(None)
        table = pa.Table.from_batches(self._batches, schema=self._schema).combine_chunks()
        table = table.sort_by([("ordinal", "ascending"), ("window", "ascending")])
        shards = pc.if_else(table["offset"].is_valid(), pa.scalar(shard, pa.string()), pa.scalar(None, pa.string()))
        table = table.set_column(table.column_names.index("shard"), self._schema.field("shard"), shards)
        total, squares = (np.asarray(sums).tolist() for sums in self._moments)
        metadata = {
            "unit": self._unit.name,
            "num_samples": str(self.counts.samples),
            "num_skips": str(self.counts.skips.total()),
            "num_rejects": str(self.counts.rejects.total()),
            "latent_count": str(self._cells),
            "latent_sum": json.dumps(total),
            "latent_sum_of_squares": json.dumps(squares),
        }
        if shard:
            metadata |= {"shard": shard} | facts
        return write_parquet(table.replace_schema_metadata(metadata))


def _clip_columns(clip: Clip, facts: VideoFacts) -> Row:
    window = clip.window
    place, bucket = window.placement, window.bucket
    scale = place.scaled_height / facts.height, place.scaled_width / facts.width
    return {
        "bucket": str(bucket),
        "num_frames": bucket.num_frames,
        "height": bucket.height,
        "width": bucket.width,
        "fps": window.fps,
        "start_s": window.start_s,
        "end_s": window.end_s,
        "frame_stride": window.frame_stride,
        "decoder": clip.decoder,
        "crop_top": round(place.crop_top / scale[0]),
        "crop_left": round(place.crop_left / scale[1]),
        "crop_height": round(place.height / scale[0]),
        "crop_width": round(place.width / scale[1]),
    }


def _sample_json(row: Row, card: Card) -> bytes:
    """What a reader of the tar alone needs: the row without its place, and how to normalise the latent."""
    values = {name: value for name, value in row.items() if value is not None and name not in columns.OFFSETS}
    shift, scale = card.statistics(row["latent_t"])
    values["normalisation"] = {"stored": "raw", "formula": "(raw - shift) * scale", "shift": shift, "scale": scale}
    return json.dumps(_strict(values), allow_nan=False, ensure_ascii=False).encode()


def _strict(value: Any) -> Any:
    """A value of a user column as strict JSON: NaN and infinity as null, bytes as base64, times as ISO text."""
    if isinstance(value, dict):
        return {str(key): _strict(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | None) else str(value)

"""The rows of a unit's metadata, and the JSON that stands beside each sample in its shard."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

import pyarrow as pa

from pipeline.output.members import CHECKSUM, SCALE, array_prefixes, members_of
from pipeline.output.schema import INT8_ERRORS, schema, shard_columns
from pipeline.output.serialization import payload_bytes
from pipeline.output.tar_writer import member_bytes
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from pipeline.sources.units import Unit
from pipeline.video.ranges import range_seconds
from pipeline.video.windows import Scene, VideoFacts, Window
from stvae.card import Card

CRC32C_OF_10_DIGITS = 4_000_000_000
STATISTIC_OF_16_DECIMALS = 0.1234567890123456
VALUE_OF_4_DECIMALS = 3.1234
"""Numbers with as many digits in JSON as the checksum, the mean and the largest value of a latent usually have."""

Row = dict[str, Any]


def sample_id(unit: Unit, item: Item, window: int, group: str = "") -> str:
    """20 hex digits that name one window of one item in one group of buckets, whatever characters the item's key has."""
    text = json.dumps([unit.source, item.ordinal, item.key, window, 0, *([group] if group else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class RowBuilder:
    """Makes the rows of one unit, without what only writing the sample tells."""

    def __init__(self, unit: Unit, recipe: Recipe, card: Card, user_columns: pa.Schema) -> None:
        self.members = members_of(recipe)
        self.schema = schema(recipe, user_columns)
        self.recipe = recipe
        self.card = card
        self.unit = unit
        self._fingerprint = recipe.fingerprint
        self._first_group = next(iter(recipe.bucket_groups), "")
        self._shard_columns = shard_columns(recipe)

    def window(
        self, item: Item, index: int, facts: VideoFacts | None, scene: Scene | None = None, group: str = ""
    ) -> Row:
        """The row of one window of an item. ``facts`` is None where the video could not be probed.

        The row of an item whose windows are not known has no group. It has the id of the item's first window in the first
        group, whose row replaces it if a retry succeeds.
        """
        row: Row = dict.fromkeys(self.schema.names)
        row |= {
            "id": sample_id(self.unit, item, index, group or self._first_group),
            "source": self.unit.source,
            "ordinal": item.ordinal,
            "key": item.key,
            "window": index,
            "group": group or None,
            "uri": item.uri,
            "caption": item.caption,
            "captions": item.captions,
            "note": item.note,
            "source_size": item.facts and item.facts.size,
            "source_etag": item.facts and item.facts.etag,
            "recipe": self._fingerprint,
        }
        if item.range is not None:
            start_s, end_s = range_seconds(facts, item.range, self.recipe.range_unit)
            row |= {"range_start_s": start_s, "range_end_s": end_s}
        if scene is not None:
            row |= {"scene": scene.number, "scene_start_s": scene.start_s, "scene_end_s": scene.end_s}
        return row | (_video_columns(facts) if facts else {}) | item.meta

    def clip(self, item: Item, window: Window, facts: VideoFacts, decoder: str) -> Row:
        """The row of a window that was decoded."""
        return self.window(item, window.index, facts, window.scene, window.group) | _clip_columns(
            window, facts, decoder
        )

    def latent_columns(self, num_frames: int, size_thw: tuple[int, ...]) -> Row:
        """The columns of a sample that describe the shape and the type of its latent."""
        geometry, store = self.card.geometry, self.recipe.store
        return {
            "latent_c": self.card.latent_channels,
            **dict(zip(("latent_t", "latent_h", "latent_w"), size_thw, strict=True)),
            "dtype": self.recipe.dtype,
            "store": "mean" if store == "moments" and not self.card.has_moments else store,
            "pad_t": 0,
            "pad_h": 0,
            "pad_w": 0,
            "pad_frames": geometry.pad_frames(num_frames),
            "chunk_frames": geometry.chunk_frames or num_frames,
            "latents_per_chunk": geometry.latents_per_chunk(num_frames),
        }

    def sample_json(self, row: Row) -> bytes:
        """JSON for a reader that has only the shard: the row without its position, and how the latent becomes floats."""
        values = {name: value for name, value in row.items() if value is not None and name not in self._shard_columns}
        shift, scale = self.card.statistics(row["latent_t"])
        values["normalization"] = {"stored": "raw", "formula": "(raw - shift) * scale", "shift": shift, "scale": scale}
        if self.recipe.dtype == "int8":
            values["quantization"] = {"formula": "raw = int8 * scale", "scale": f"<member>_{SCALE}"}
        return json.dumps(_strict(values), allow_nan=False, ensure_ascii=False).encode()


def sample_bytes(rows: RowBuilder, item: Item, facts: VideoFacts, window: Window) -> int:
    """Bytes that ``ShardWriter.add_sample`` would add to the shard for a window, without decoding it.

    Exact except for the digits of numbers that only encoding tells. They may take the JSON over the edge of a block of
    512 bytes.
    """
    recipe, card = rows.recipe, rows.card
    decoder = "pyav" if facts.decord_refusal else recipe.decoder
    sizes = [member.latent_thw(window.bucket, card.geometry) for member in rows.members]
    row = rows.clip(item, window, facts, decoder) | rows.latent_columns(window.bucket.num_frames, sizes[0])
    row |= {f"{prefix}{CHECKSUM}": CRC32C_OF_10_DIGITS for prefix in array_prefixes(recipe)}
    row |= dict.fromkeys(("latent_mean", "latent_std"), STATISTIC_OF_16_DECIMALS)
    if recipe.dtype == "int8":
        row |= dict.fromkeys(INT8_ERRORS, STATISTIC_OF_16_DECIMALS)
    row |= {"latent_absmax": VALUE_OF_4_DECIMALS, "encode_path": "whole"}
    channels = card.latent_channels if recipe.store != "moments" else card.stored_channels
    payloads = [num_bytes for size in sizes for num_bytes in payload_bytes((channels, *size), recipe.dtype)]
    return sum(map(member_bytes, [*payloads, len(rows.sample_json(row))]))


def _video_columns(facts: VideoFacts) -> Row:
    return {
        "src_width": facts.width,
        "src_height": facts.height,
        "src_fps": facts.fps,
        "src_num_frames": len(facts.pts),
        "src_duration_s": facts.duration_s,
        "src_codec": facts.codec,
        "rotation": facts.rotation,
        "mirrored": facts.mirrored,
        "container_crop": ",".join(map(str, facts.crop)) if any(facts.crop) else None,
        "interlaced": facts.interlaced,
        "hdr": facts.hdr,
        "dolby_vision": facts.dolby_vision,
    }


def _clip_columns(window: Window, facts: VideoFacts, decoder: str) -> Row:
    place, bucket = window.placement, window.bucket
    scale = place.scaled_height / facts.height, place.scaled_width / facts.width
    return {
        "bucket": bucket.size,
        "num_frames": bucket.num_frames,
        "height": bucket.height,
        "width": bucket.width,
        "fps": window.fps,
        "start_s": window.start_s,
        "end_s": window.end_s,
        "frame_stride": window.frame_stride,
        "decoder": decoder,
        "crop_top": round(place.crop_top / scale[0]),
        "crop_left": round(place.crop_left / scale[1]),
        "crop_height": round(place.height / scale[0]),
        "crop_width": round(place.width / scale[1]),
    }


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

"""The columns of unit metadata and index. README.md describes them one by one."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NAME_SEPARATOR
from pipeline.output.members import CHECKSUM, SPAN, array_prefixes
from pipeline.recipe import Recipe

_TEXT, _INT, _LONG, _FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float64()

GROUPS: dict[str, list[tuple[str, pa.DataType]]] = {
    "identity": [
        ("id", _TEXT),
        ("source", _TEXT),
        ("ordinal", _LONG),
        ("key", _TEXT),
        ("window", _INT),
        ("group", _TEXT),
        ("uri", _TEXT),
        ("caption", _TEXT),
        ("captions", pa.list_(_TEXT)),
        ("note", _TEXT),
        ("range_start_s", _FLOAT),
        ("range_end_s", _FLOAT),
        ("scene", _INT),
        ("scene_start_s", _FLOAT),
        ("scene_end_s", _FLOAT),
    ],
    "place": [
        ("shard", _TEXT),
        ("dtype", _TEXT),
        ("store", _TEXT),
    ],
    "members": [],
    "latent": [
        (name, _INT)
        for name in (
            *("latent_c", "latent_t", "latent_h", "latent_w", "pad_t", "pad_h", "pad_w"),
            *("pad_frames", "chunk_frames", "latents_per_chunk"),
        )
    ],
    "pixels": [
        ("bucket", _TEXT),
        ("num_frames", _INT),
        ("height", _INT),
        ("width", _INT),
        ("fps", _FLOAT),
        ("start_s", _FLOAT),
        ("end_s", _FLOAT),
        ("frame_stride", _INT),
    ],
    "source facts": [
        ("src_width", _INT),
        ("src_height", _INT),
        ("src_fps", _FLOAT),
        ("src_num_frames", _INT),
        ("src_duration_s", _FLOAT),
        ("src_codec", _TEXT),
        ("decoder", _TEXT),
        ("rotation", _INT),
        ("mirrored", pa.bool_()),
        ("container_crop", _TEXT),
        ("interlaced", pa.bool_()),
        ("hdr", _TEXT),
        ("dolby_vision", _INT),
        ("crop_top", _INT),
        ("crop_left", _INT),
        ("crop_height", _INT),
        ("crop_width", _INT),
    ],
    "numbers": [("latent_mean", _FLOAT), ("latent_std", _FLOAT), ("latent_absmax", _FLOAT), ("encode_path", _TEXT)],
    "outcome": [
        ("skip_reason", _TEXT),
        ("reject_stage", _TEXT),
        ("reject_reason", _TEXT),
        ("reject_message", _TEXT),
    ],
    "provenance": [("source_size", _LONG), ("source_etag", _TEXT), ("recipe", _TEXT)],
}
"""Columns by topic. ``schema`` puts those of the recipe's members in their place, and user columns at the end."""

INT8_ERRORS = ("int8_error_max", "int8_error_mean")
"""Columns of int8 outputs: largest and mean difference of the stored latent from the encoder's, before normalization."""

ROW_ORDER = tuple((name, "ascending") for name in ("ordinal", "window", "group"))
"""Order of the rows of a source."""

REJECT_COLUMNS = ("reject_stage", "reject_reason")
"""The columns that ``reject_names`` joins."""


def schema(recipe: Recipe, user_columns: pa.Schema) -> pa.Schema:
    """Every column of unit metadata and index, in order, with its type. User columns: ``meta`` and ``meta_<name>``."""
    of_members = [column for prefix in array_prefixes(recipe) for column in _array_columns(prefix)]
    errors = [(name, _FLOAT) for name in INT8_ERRORS if recipe.dtype == "int8"]
    groups = GROUPS | {"members": of_members, "numbers": GROUPS["numbers"] + errors}
    return pa.schema([*(column for group in groups.values() for column in group), *user_columns])


def shard_columns(recipe: Recipe) -> set[str]:
    """Columns that say in which shard a sample is and where. Inside the shard they have no use."""
    return {"shard", *(f"{prefix}{name}" for prefix in array_prefixes(recipe) for name in SPAN)}


def reject_names(table: pa.Table) -> pa.ChunkedArray:
    """``Reject.name`` of every row of a table that has ``REJECT_COLUMNS``; null where a row is not a reject."""
    stages, reasons = (table[name] for name in REJECT_COLUMNS)
    return pc.binary_join_element_wise(stages, reasons, NAME_SEPARATOR)


def bucket_names(samples: pa.Table) -> pa.ChunkedArray:
    """``str(Bucket)`` of every sample of a table that has ``bucket`` and, in outputs with groups, ``group``."""
    if "group" not in samples.column_names:
        return samples["bucket"]
    return pc.coalesce(pc.binary_join_element_wise(samples["group"], samples["bucket"], "="), samples["bucket"])


def _array_columns(prefix: str) -> list[tuple[str, pa.DataType]]:
    return [*((f"{prefix}{name}", _LONG) for name in SPAN), (f"{prefix}{CHECKSUM}", pa.uint32())]

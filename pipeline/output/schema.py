"""The columns of sidecars and index: output format version 1."""

from __future__ import annotations

import pyarrow as pa

_TEXT, _INT, _LONG, _FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float64()

_SPAN = ("offset", "nbytes", "tensor_offset", "tensor_nbytes")

GROUPS: dict[str, list[tuple[str, pa.DataType]]] = {
    "identity": [
        ("id", _TEXT),
        ("source", _TEXT),
        ("ordinal", _LONG),
        ("key", _TEXT),
        ("window", _INT),
        ("uri", _TEXT),
        ("caption", _TEXT),
    ],
    "place": [
        ("shard", _TEXT),
        *((name, _LONG) for name in _SPAN),
        ("dtype", _TEXT),
        ("store", _TEXT),
        ("crc32c", pa.uint32()),
    ],
    "conditioning": [
        (f"{frame}_{name}", type_)
        for frame in ("first", "last")
        for name, type_ in (
            *((name, _LONG) for name in _SPAN),
            ("crc32c", pa.uint32()),
        )
    ],
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
        ("hdr", _TEXT),
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
"""Columns by what they tell. User columns follow: ``meta`` and ``meta_<name>``."""

OFFSETS = frozenset(["shard", *(f"{prefix}{name}" for prefix in ("", "first_", "last_") for name in _SPAN)])
"""Columns that say where in which shard a member is: of no use inside the shard."""

NAMES = [name for group in GROUPS.values() for name, _ in group]


def schema(user_columns: pa.Schema) -> pa.Schema:
    """Every column of a sidecar, in order, with its type."""
    return pa.schema([*(column for group in GROUPS.values() for column in group), *user_columns])

"""Latents as bytes: npy for float16, safetensors for bfloat16 and float32."""

from __future__ import annotations

import functools
import io
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from stvae.bfloat16 import from_bfloat16, to_bfloat16

FLOAT16_MAX = 65504.0
TENSOR_ALIGNMENT = 64
"""Safetensors files have their tensor at a multiple of this many bytes."""
SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float32": "F32"}

Array = npt.NDArray[Any]


class Packed(NamedTuple):
    """An array as it is stored in a shard."""

    stored: Array
    """The values after rounding to the stored type; bfloat16 as float32."""
    payload: bytes
    """The whole file: a header and the tensor."""
    header_bytes: int
    """Size of the header in bytes."""
    suffix: str
    """``npy`` or ``safetensors``."""


def unpack_latent(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array in the bytes of a stored tensor; bfloat16 comes as float32."""
    if dtype == "bfloat16":
        return from_bfloat16(np.frombuffer(data, dtype=np.uint16)).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def pack_latent(latent: Array, dtype: str, name: str = "latent") -> Packed:
    """Encode a latent, or another array, in its stored type.

    float16 becomes ``.npy``, which every reader knows. bfloat16 and float32 become ``.safetensors`` with a tensor named
    ``name`` at a multiple of 64 bytes. Raises Rejected if a value is not finite or outside the type's range.
    """
    if not np.isfinite(latent).all():
        raise Rejected("encode", "nonfinite", f"the {name} has NaN or infinite values")
    if dtype == "float16":
        if np.abs(latent).max() > FLOAT16_MAX:
            raise Rejected("encode", "out_of_range", f"the {name} has values beyond float16 ({np.abs(latent).max():g})")
        stored = np.ascontiguousarray(latent, dtype=np.float16)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
        payload = buffer.getvalue()
        return Packed(stored, payload, len(payload) - stored.nbytes, "npy")
    values: npt.NDArray[np.float32] = np.ascontiguousarray(latent, dtype=np.float32)
    data = values.tobytes()
    if dtype == "bfloat16":
        bits = to_bfloat16(values)
        data, values = bits.tobytes(), from_bfloat16(bits)
    entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(latent.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-(8 + len(header)) % TENSOR_ALIGNMENT)
    return Packed(values, len(header).to_bytes(8, "little") + header + data, 8 + len(header), "safetensors")


@functools.cache
def payload_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size in bytes of the payload that ``pack_latent`` makes of a latent of this shape."""
    return len(pack_latent(np.zeros(shape, dtype=np.float32), dtype).payload)

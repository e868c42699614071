"""Latents as bytes: npy for float16, safetensors for bfloat16 and float32."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected

FLOAT16_MAX = 65504.0

TENSOR_ALIGNMENT = 64

SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float32": "F32"}

Array = npt.NDArray[Any]


def unpack_latent(data: bytes, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if dtype == "bfloat16":
        bits = np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def pack_latent(latent: Array, dtype: str) -> tuple[Array, bytes, int, str]:
    """A latent in its stored type: the values, the member's payload, bytes of its header, and the member's suffix.

    float16 becomes ``.npy``, which every reader knows; bfloat16 and float32 become ``.safetensors`` with the tensor
    named ``latent`` at a multiple of 64. Rejected where a value is not finite or outside the type's range.
    """
    if not np.isfinite(latent).all():
        raise Rejected("encode", "nonfinite", "the latent has NaN or infinite values")
    if dtype == "float16":
        if np.abs(latent).max() > FLOAT16_MAX:
            raise Rejected("encode", "out_of_range", f"the latent has values beyond float16 ({np.abs(latent).max():g})")
        stored = np.ascontiguousarray(latent, dtype=np.float16)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
        payload = buffer.getvalue()
        return stored, payload, len(payload) - stored.nbytes, "npy"
    stored = np.ascontiguousarray(latent, dtype=np.float32)
    data = stored.tobytes()
    if dtype == "bfloat16":
        bits = stored.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
        data = rounded.tobytes()
        stored = (rounded.astype(np.uint32) << 16).view(np.float32)
    entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(latent.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"latent": entry}).encode()
    header += b" " * (-(8 + len(header)) % TENSOR_ALIGNMENT)
    return stored, len(header).to_bytes(8, "little") + header + data, 8 + len(header), "safetensors"


@functools.cache
def payload_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size of the member that ``pack_latent`` makes of a latent."""
    return len(pack_latent(np.zeros(shape, dtype=np.float32), dtype)[1])

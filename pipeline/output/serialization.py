"""Latents as bytes: npy for float16, and for int8 with the scales in a second npy; safetensors for bfloat16 and float32."""

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
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}
"""Size of a stored value in bytes."""
INT8_MAX = 127
"""Largest absolute value that ``quantize`` gives; -128 is never stored."""
SMALLEST_SCALE = np.float32(np.finfo(np.float32).smallest_normal)
"""Smallest scale of a block that is not zero, so that dividing by it keeps its precision."""
TENSOR_ALIGNMENT = 64
"""Safetensors files have their tensor at a multiple of this many bytes."""
SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float32": "F32"}

Array = npt.NDArray[Any]


class Packed(NamedTuple):
    """An array as it is stored in a shard."""

    stored: Array
    """The values after rounding to the stored type; bfloat16 and int8 as float32."""
    payload: bytes
    """The whole file: a header and the tensor."""
    header_bytes: int
    """Size of the header in bytes."""
    suffix: str
    """``npy`` or ``safetensors``."""
    scales: Packed | None = None
    """With int8, the scales, which are a file of their own."""


def unpack_latent(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array in the bytes of a stored tensor; bfloat16 comes as float32, int8 without its scales."""
    if dtype == "bfloat16":
        return from_bfloat16(np.frombuffer(data, dtype=np.uint16)).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def pack_latent(latent: Array, dtype: str, name: str = "latent") -> Packed:
    """Encode a latent, or another array, in its stored type.

    float16 and int8 become ``.npy``, which every reader knows. bfloat16 and float32 become ``.safetensors`` with a tensor
    named ``name`` at a multiple of 64 bytes. Raises Rejected if a value is not finite or outside the type's range.
    """
    if not np.isfinite(latent).all():
        raise Rejected("encode", "nonfinite", f"the {name} has NaN or infinite values")
    if dtype == "float16":
        if np.abs(latent).max() > FLOAT16_MAX:
            raise Rejected("encode", "out_of_range", f"the {name} has values beyond float16 ({np.abs(latent).max():g})")
        return _pack_npy(np.ascontiguousarray(latent, dtype=np.float16))
    if dtype == "int8":
        values_Cthw, scales_Ct11 = quantize(latent)
        restored = dequantize(values_Cthw, scales_Ct11)
        if not np.isfinite(restored).all():
            raise Rejected("encode", "out_of_range", f"the {name} has values beyond float32 ({np.abs(latent).max():g})")
        return _pack_npy(values_Cthw)._replace(stored=restored, scales=_pack_npy(scales_Ct11))
    values: npt.NDArray[np.float32] = np.ascontiguousarray(latent, dtype=np.float32)
    data = values.tobytes()
    if dtype == "bfloat16":
        bits = to_bfloat16(values)
        data, values = bits.tobytes(), from_bfloat16(bits)
    entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(latent.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-(8 + len(header)) % TENSOR_ALIGNMENT)
    return Packed(values, len(header).to_bytes(8, "little") + header + data, 8 + len(header), "safetensors")


def quantize(latent_Cthw: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round finite values to int8 with a scale for each channel and latent frame. Returns [C,t,h,w] and [C,t,1,1]."""
    # Shapes: a block is the [h,w] values of one channel and latent frame; its scale is the largest of them / 127.
    # Invariant: |values * scale - latent| <= scale / 2, up to float32's own rounding. Ties go to the even number.
    # Example: block [0 0.5 -2.54] -> scale 0.02, values [0 25 -127]; a block of zeros has scale 0 and values 0.
    x_Cthw = np.ascontiguousarray(latent_Cthw, dtype=np.float32)
    largest = np.abs(x_Cthw).max(axis=(-2, -1), keepdims=True)
    scales = np.where(largest > 0, np.maximum(largest / np.float32(INT8_MAX), SMALLEST_SCALE), np.float32(0))
    values = np.rint(x_Cthw / np.where(scales > 0, scales, np.float32(1)))
    return values.clip(-INT8_MAX, INT8_MAX).astype(np.int8), scales


def dequantize(values: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The float32 values that ``quantize`` rounded to; infinite where they are beyond float32."""
    with np.errstate(over="ignore"):
        return values * scales


@functools.cache
def payload_bytes(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """Sizes in bytes of the files that ``pack_latent`` makes of a latent of this shape."""
    packed = pack_latent(np.zeros(shape, dtype=np.float32), dtype)
    return (len(packed.payload), *([len(packed.scales.payload)] if packed.scales else []))


def _pack_npy(array: Array) -> Packed:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    payload = buffer.getvalue()
    return Packed(array, payload, len(payload) - array.nbytes, "npy")

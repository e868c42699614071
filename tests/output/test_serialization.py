"""Arrays as they are stored: what is packed is what is read back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import Rejected
from pipeline.output.serialization import (
    INT8_MAX,
    SMALLEST_SCALE,
    TENSOR_ALIGNMENT,
    dequantize,
    pack_latent,
    payload_bytes,
    quantize,
    unpack_latent,
)
from stvae.bfloat16 import from_bfloat16, to_bfloat16


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("float16", "npy"), ("bfloat16", "safetensors"), ("float32", "safetensors")]
)
def test_a_packed_array_is_read_back_as_it_was_stored(dtype: str, suffix: str) -> None:
    latent = np.random.default_rng(0).standard_normal((4, 2, 3, 5), dtype=np.float32)
    packed = pack_latent(latent, dtype)
    read = unpack_latent(packed.payload[packed.header_bytes :], dtype, latent.shape)
    assert packed.suffix == suffix and np.array_equal(read, packed.stored)
    expected = torch.from_numpy(latent).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(read.astype(np.float32), expected)
    assert packed.header_bytes % TENSOR_ALIGNMENT == 0
    assert payload_bytes(latent.shape, dtype) == (len(packed.payload),)


def test_bfloat16_is_rounded_to_nearest_with_ties_to_even() -> None:
    bits = np.random.default_rng(1).integers(0, 0x7F00_0000, 100_000, dtype=np.uint32)
    ties = (bits & 0xFFFF_0000) | 0x8000
    values = np.concatenate([bits, ties, bits | 0x8000_0000]).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [(np.nan, "float32", "nonfinite"), (7e4, "float16", "out_of_range"), (-np.inf, "int8", "nonfinite")],
)
def test_values_that_the_type_cannot_hold_are_rejects(value: float, dtype: str, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        pack_latent(np.full((1, 1, 1, 1), value, dtype=np.float32), dtype)
    assert rejected.value.reject.name == f"encode/{reason}"


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LATENTS = arrays.arrays(
    np.float32,
    st.tuples(*(st.integers(1, 3) for _ in range(4))),
    elements=st.one_of(FINITE, st.floats(-4, 4, width=32)),
)


@settings(max_examples=200, deadline=None)
@given(LATENTS)
@example(np.zeros((2, 1, 2, 2), np.float32))
@example(np.full((1, 1, 1, 2), 1e-45, np.float32))
@example(np.array([[[[127, -127, 0.5, 1.5, -2.5]]]], np.float32))
def test_int8_is_within_half_a_scale_of_the_latent(latent: np.ndarray) -> None:
    values, scales = quantize(latent)
    assert values.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (*latent.shape[:2], 1, 1)
    assert np.abs(values.astype(int)).max() <= INT8_MAX
    largest = np.abs(latent).max(axis=(2, 3), keepdims=True)
    assert np.array_equal(scales == 0, largest == 0) and (scales[scales > 0] >= SMALLEST_SCALE).all()
    step = scales.astype(np.float64)
    restored = values * step
    assert (np.abs(restored - latent) <= step / 2 * (1 + 1e-4)).all()
    if np.isfinite(dequantize(values, scales)).all():
        assert (np.abs(dequantize(values, scales) - restored) <= INT8_MAX * step * 1e-7).all()
    again = quantize(latent[::-1].copy())
    assert np.array_equal(again[0][::-1], values), "a block does not depend on the others"


def test_ties_of_int8_go_to_the_even_number_and_zeros_stay_zero() -> None:
    latent = np.array([[[[127, 0.5, 1.5, -2.5]], [[0, -0.0, 0, 0]]]], np.float32)
    values, scales = quantize(latent)
    assert values[0, 0, 0].tolist() == [127, 0, 2, -2] and scales.ravel().tolist() == [1, 0]
    assert not values[0, 1].any() and not dequantize(values, scales)[0, 1].any()


def test_int8_is_two_plain_npy_files() -> None:
    latent = np.random.default_rng(0).standard_normal((4, 2, 3, 5), dtype=np.float32)
    packed = pack_latent(latent, "int8")
    assert packed.scales is not None and (packed.suffix, packed.scales.suffix) == ("npy", "npy")
    values, scales = (np.load(io.BytesIO(part.payload), allow_pickle=False) for part in (packed, packed.scales))
    assert values.dtype == np.int8 and scales.dtype == np.float32
    assert np.array_equal(values * scales, packed.stored) and packed.stored.dtype == np.float32
    assert np.array_equal(unpack_latent(packed.payload[packed.header_bytes :], "int8", latent.shape), values)
    assert payload_bytes(latent.shape, "int8") == (len(packed.payload), len(packed.scales.payload))


def test_values_that_int8_would_restore_as_infinite_are_rejects() -> None:
    largest = np.finfo(np.float32).max
    candidates = np.nextafter(largest, np.float32(0)) * (1 - np.arange(20, dtype=np.float32) * np.float32(1e-7))
    for value in (largest, *candidates):
        try:
            assert np.isfinite(pack_latent(np.full((1, 1, 1, 1), value, np.float32), "int8").stored).all()
        except Rejected as rejected:
            assert rejected.reject.name == "encode/out_of_range"

"""Arrays as they are stored: what is packed is what is read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import Rejected
from pipeline.output.serialization import TENSOR_ALIGNMENT, pack_latent, payload_bytes, unpack_latent
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
    assert payload_bytes(latent.shape, dtype) == len(packed.payload)


def test_bfloat16_is_rounded_to_nearest_with_ties_to_even() -> None:
    bits = np.random.default_rng(1).integers(0, 0x7F00_0000, 100_000, dtype=np.uint32)
    ties = (bits & 0xFFFF_0000) | 0x8000
    values = np.concatenate([bits, ties, bits | 0x8000_0000]).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "reason"), [(np.nan, "float32", "nonfinite"), (7e4, "float16", "out_of_range")]
)
def test_values_that_the_type_cannot_hold_are_rejects(value: float, dtype: str, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        pack_latent(np.full((1, 1, 1, 1), value, dtype=np.float32), dtype)
    assert rejected.value.reject.name == f"encode/{reason}"

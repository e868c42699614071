"""Memory of batches: used again when nothing refers to it, never before. Reader threads compute alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.loader.collation.conversion import compute_in_one_thread
from pipeline.loader.collation.memory import ALIGNMENT_BYTES, RecycledMemory
from stvae.normalization import normalize
from tests.support.latent_set import write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(17, 32, 56)] * 12


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 samples of two buckets."""
    return str(write_latents(tmp_path_factory.mktemp("memory") / "out", BUCKETS))


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: x[1:, :2],
        lambda x: x.numpy()[1],
        lambda x: x.detach().view(torch.int32),
        lambda x: x.untyped_storage(),
        lambda x: (torch.ones((), requires_grad=True) * x).sum(),  # autograd keeps x
    ],
)
def test_memory_is_used_again_only_when_nothing_shares_it(keep: Callable[[Tensor], Any]) -> None:
    memory = RecycledMemory(max_free=2)
    x = memory.empty((4, 6), torch.float32)
    assert x.shape == (4, 6) and x.dtype == torch.float32 and x.data_ptr() % ALIGNMENT_BYTES == 0
    address, kept = x.data_ptr(), keep(x)
    del x
    others = [memory.empty((4, 6), torch.float32) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    del kept
    smaller = memory.empty((3, 3), torch.float16)
    assert smaller.data_ptr() == address


def test_memory_that_is_too_small_is_replaced_and_little_is_kept() -> None:
    memory = RecycledMemory(max_free=2)
    small = [memory.empty((8,), torch.uint8) for _ in range(4)]
    del small
    assert len(memory._free) == 2
    large = memory.empty((1000,), torch.uint8)
    assert large.numel() == 1000 and len(memory._free) == 0
    assert memory.empty((0, 3), torch.float32).shape == (0, 3)
    del large
    assert len(copy.deepcopy(memory)._free) == 0


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"normalized": False}, {"shapes": "pad"}])
def test_parts_of_a_batch_that_are_kept_stay_as_they_are(output: str, options: dict[str, Any]) -> None:
    data = LatentDataset(output)
    batches = data.batches(2, **options)
    parts = [(batch["latents"][1], batch["latents"].clone()[1], batch["latents"].data_ptr()) for batch in batches]
    assert all(torch.equal(part, copy) for part, copy, _ in parts)
    assert len({address for *_, address in parts}) == len(parts)


def test_a_loop_that_keeps_nothing_uses_the_same_memory(output: str) -> None:
    batches = LatentDataset(output).batches(2)
    addresses = {batch["latents"].data_ptr() for _ in range(4) for batch in batches}
    assert len(addresses) <= 12 < 4 * len(batches), "few pieces of memory, and each grows once, for the larger bucket"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16, torch.float16])
def test_converting_sample_by_sample_gives_the_same_bits(
    tmp_path: Path, dtype: str, wanted: torch.dtype | None
) -> None:
    data = LatentDataset(write_latents(tmp_path / "out", BUCKETS[:8], dtype=dtype))
    stored = data.batches(2, normalized=False, dtype=None, copy=True)
    for raw, batch in zip(stored, data.batches(2, dtype=wanted), strict=True):
        exact = normalize(raw["latents"].float(), data.card)
        assert torch.equal(batch["latents"], exact.to(wanted or torch.float32))


def test_readers_compute_in_their_own_thread_and_other_threads_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(4, initializer=compute_in_one_thread) as pool:
            together = threading.Barrier(4)
            assert list(pool.map(lambda _: (together.wait(), torch.get_num_threads())[1], range(4))) == [1] * 4
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)

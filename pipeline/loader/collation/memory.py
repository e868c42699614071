"""Memory for the tensors of batches, used again once nothing refers to it: fresh memory costs more than reading into it."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT_BYTES = 64
"""Alignment that vector instructions work best with. It is that of torch's own tensors."""

Memory = npt.NDArray[np.uint8]


def allocate(num_bytes: int) -> Memory:
    """Return fresh memory, uint8 [num_bytes]. NumPy asks the kernel for huge pages, which torch does not."""
    memory: Memory = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + num_bytes]


class RecycledMemory:
    """Makes tensors in memory that earlier tensors have used. Safe to call from several threads."""

    def __init__(self, max_free: int) -> None:
        """max_free: number of pieces of memory to keep for later tensors."""
        self._free: deque[Memory] = deque(maxlen=max_free)

    def __reduce__(self) -> tuple[type[RecycledMemory], tuple[int]]:
        return RecycledMemory, (self._free.maxlen or 0,)  # a worker process begins with no memory

    def empty(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with arbitrary values, like ``torch.empty``.

        Its memory is used again once no tensor, view or array that shares it is left.
        """
        # Invariant: the tensor's storage holds the only reference to content, and everything that shares the memory holds
        # the storage; so content dies, and the memory becomes free, when the last of them is gone.
        num_bytes = math.prod(size) * dtype.itemsize
        memory = self._take(num_bytes)
        content = memory[:num_bytes]
        weakref.finalize(content, self._free.append, memory).atexit = False
        return torch.from_numpy(content).view(dtype).view(size)

    def _take(self, num_bytes: int) -> Memory:
        """Return free memory that is large enough, the latest first, which may still be in the processor's cache."""
        too_small = []
        try:
            while len(memory := self._free.pop()) < num_bytes:
                too_small.append(memory)
        except IndexError:
            return allocate(num_bytes)  # in place of those that were too small
        self._free.extendleft(too_small)
        return memory

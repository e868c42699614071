"""A batch whose bytes are being read, and the memory that they are read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.loader.readers import Span
from pipeline.loader.schedule.keys import Indices
from pipeline.output.members import Member


class BatchBuffer:
    """Memory for the bytes of one batch, used again for later batches. It is pinned if tensors go to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._copy_done: Any = None
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, num_bytes: int) -> memoryview:
        """Return ``num_bytes`` to write into, once the copies of the previous batch to the GPU are complete."""
        if self._copy_done is not None:
            self._copy_done.synchronize()
            self._copy_done = None
        if self.bytes.numel() < num_bytes:
            self.bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._on_gpu)
        return self.bytes.numpy().data[:num_bytes]

    def protect_until_copied(self) -> None:
        """Make the next ``reserve`` wait for the copies to the GPU that have been started so far."""
        if self._on_gpu:
            self._copy_done = torch.cuda.Event()
            self._copy_done.record()


@dataclass(slots=True)
class MemberLayout:
    """Where one member of every sample is in the buffer."""

    member: Member
    sizes_thw: list[tuple[int, int, int]]
    """Latent size of each sample."""
    pad_thw: tuple[int, int, int]
    """Largest size on each axis in the step, over all ranks."""
    offsets: list[int]
    """Byte offset of each sample in the buffer. Samples are adjacent."""
    end: int = 0
    """Byte offset behind the last sample."""


@dataclass(slots=True)
class PendingBatch:
    """A batch whose bytes are being read."""

    samples: Indices
    """int64 [B]: the samples, ``BLANK`` for blanks."""
    rows: dict[str, Any]
    """Columns of the catalog, [B] each."""
    buffer: BatchBuffer
    layouts: list[MemberLayout] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """Where to read, and where in the buffer the bytes go."""
    checks: list[tuple[int, Member, memoryview]] = field(default_factory=list)
    """Tensors to verify: place in the batch, member, and the whole stored tensor."""
    copies: list[tuple[memoryview, Any]] = field(default_factory=list)
    """Copies to make before tensors are made: place in the buffer, and the wanted part of a whole stored tensor."""

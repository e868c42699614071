"""A batch whose bytes are being read, and the memory that they are read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loader.collation.memory import allocate
from pipeline.loader.readers import Span
from pipeline.loader.schedule.keys import Indices
from pipeline.loader.text.pending import PendingTexts
from pipeline.output.members import Member

Size = tuple[int, int, int, int]
"""Size of one tensor: (channels, t, h, w)."""


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
            if self._on_gpu:
                self.bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            else:
                self.bytes = torch.from_numpy(allocate(num_bytes))
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
    sizes: list[Size]
    """Size of each sample's tensor."""
    pad_thw: tuple[int, ...]
    """Largest size on each axis in the step, over all ranks."""
    offsets: list[int]
    """Byte offset of each sample in the buffer. Samples are adjacent."""
    end: int
    """Byte offset behind the last sample."""
    scale_offsets: list[int]
    """Byte offset of the scales of each int8 sample, [C,t,1,1] in float32, which are adjacent too; else empty."""
    scale_end: int
    """Byte offset behind the last scales, or behind the last sample if there are none."""
    latents: Tensor | None = None
    """[B,C,t,h,w], the tensor for training whose parts ``converted`` are, if all samples have one size."""
    converted: list[Tensor] | None = None
    """[C,t,h,w] each: the tensors for training, if samples are converted one by one, each after it has been read."""

    def content(self, buffer: BatchBuffer, i: int, dtype: torch.dtype) -> Tensor:
        """Return the stored tensor of sample ``i``, [C,t,h,w], in the buffer's memory."""
        stop = self.offsets[i + 1] if i + 1 < len(self.offsets) else self.end
        return buffer.bytes[self.offsets[i] : stop].view(dtype).view(self.sizes[i])

    def scales(self, buffer: BatchBuffer, i: int) -> Tensor | None:
        """Return the scales of sample ``i``, float32 [C,t,1,1], in the buffer's memory; None unless it is stored as int8."""
        if not self.scale_offsets:
            return None
        channels, latent_t, *_ = self.sizes[i]
        start = self.scale_offsets[i]
        return buffer.bytes[start : start + 4 * channels * latent_t].view(torch.float32).view(channels, latent_t, 1, 1)

    def all_scales(self, buffer: BatchBuffer) -> Tensor | None:
        """Return the scales of all samples, float32 [B,C,t,1,1], if the samples have one size; None if there are none."""
        if not self.scale_offsets:
            return None
        channels, latent_t, *_ = self.sizes[0]
        scales = buffer.bytes[self.scale_offsets[0] : self.scale_end].view(torch.float32)
        return scales.view(len(self.sizes), channels, latent_t, 1, 1)


@dataclass(frozen=True, slots=True)
class ArrayColumns:
    """Columns of the catalog that say where an array is, and its checksum."""

    offset: str
    nbytes: str
    checksum: str


@dataclass(slots=True)
class PendingTensor:
    """One tensor that is being read: the values of a member, or their scales."""

    place: int
    """Place of the sample in the batch."""
    layout: MemberLayout
    columns: ArrayColumns
    dtype: torch.dtype
    is_scales: bool
    into: memoryview
    """Place in the buffer."""
    num_spans: int = 1
    """Number of spans that the tensor is read in."""
    whole: memoryview | None = None
    """The whole stored tensor, if its checksum is to be compared."""
    part: npt.NDArray[np.uint8] | None = None
    """The wanted part of ``whole``, to be copied to ``into``. None if ``whole`` is ``into``."""


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
    """Where to read, and where the bytes go."""
    tensors: list[PendingTensor] = field(default_factory=list)
    """The tensors that the spans belong to, in the order of the spans. Blanks have none."""
    seeds: list[int] = field(default_factory=list)
    """A seed per sample, which follows from the options' seed, the epoch and the sample. Empty if nothing is drawn."""
    captions: list[str | None] = field(default_factory=list)
    """The chosen caption of each sample."""
    texts: PendingTexts | None = None
    """The texts that are being read, with a text layer. Their spans follow those of the tensors."""

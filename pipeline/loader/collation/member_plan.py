"""Where the tensors of one member are: their columns in the catalog, their sizes, and the spans that hold them.

C latent channels (twice as many for moments) · t, h, w latent grid
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.bucket import Bucket
from pipeline.loader.collation.pending import PendingTensor, Size
from pipeline.loader.options import BatchOptions
from pipeline.loader.readers import Span
from pipeline.loader.samples import Samples
from pipeline.output.members import CHECKSUM, Member
from stvae.card import Card


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """Where a member's tensors are found, and their sizes."""

    member: Member
    offset: str
    nbytes: str
    checksum: str
    """Columns of the catalog."""
    sizes: list[Size]
    """Size (channels, t, h, w) by bucket."""

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.offset, self.nbytes, self.checksum


def plan_member(member: Member, samples: Samples, card: Card, options: BatchOptions) -> MemberPlan:
    """Find the columns of a member and the size that it has in each bucket of the samples."""
    if member.is_clip:
        channels = card.latent_channels * (2 if options.latent == "sample" else 1)
        sizes_thw = [bucket.latent_thw for bucket in samples.buckets]
    else:
        channels = card.latent_channels
        clips = [Bucket(bucket.num_frames, bucket.height, bucket.width) for bucket in samples.buckets]
        sizes_thw = [member.latent_thw(clip, card.geometry) for clip in clips]
    offset, nbytes, checksum = (member.column(name) for name in ("tensor_offset", "tensor_nbytes", CHECKSUM))
    return MemberPlan(member, offset, nbytes, checksum, [(channels, *size) for size in sizes_thw])


def spans_of(tensor: Span, size: Size, stored: tuple[int, int]) -> list[Span]:
    """Return the spans that a tensor is read in: one, or one per channel if only some latent frames are wanted.

    tensor: where the stored tensor begins, and where the wanted part goes. size: (C, t, h, w) of that part.
    stored: number of latent frames that are stored, and the first of those that are wanted.
    """
    # Shapes: stored tensors are [C, stored_t, h, w] in C order; a plane is the bytes of one (h, w).
    # Invariant: tensor.into gets [C, size_t, h, w], the latent frames from the first wanted one.
    # Example: 15 stored latent frames, 5 wanted from 10 -> channel c is read at plane 15 * c + 10, 5 planes long.
    stored_t, first = stored
    if size[1] == stored_t:
        return [tensor]
    length = len(tensor.into) // size[0]
    plane = length // size[1]
    return [
        Span(tensor.shard, tensor.offset + (c * stored_t + first) * plane, tensor.into[c * length : (c + 1) * length])
        for c in range(size[0])
    ]


def read_whole(tensor: PendingTensor, stored: tuple[int, int], stored_bytes: int) -> PendingTensor:
    """Let a tensor be read whole, for its checksum. The wanted part is copied then. stored: see ``spans_of``."""
    if len(tensor.into) == stored_bytes:
        return dataclasses.replace(tensor, whole=tensor.into)
    channels, t, *_ = tensor.layout.sizes[tensor.place]
    stored_t, first = stored
    whole = memoryview(bytearray(stored_bytes))
    plane = len(tensor.into) // (channels * t)
    stored_cb = np.frombuffer(whole, np.uint8).reshape(-1, stored_t * plane)
    return dataclasses.replace(tensor, whole=whole, part=stored_cb[:channels, first * plane : (first + t) * plane])

"""Where the tensors of one member are: their columns in the catalog, their sizes, and the spans that hold them.

C latent channels (twice as many for moments) · t, h, w latent grid
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.bucket import Bucket
from pipeline.loader.collation.pending import ArrayColumns, MemberLayout, PendingBatch, PendingTensor, Size
from pipeline.loader.options import BatchOptions
from pipeline.loader.readers import Span
from pipeline.loader.samples import Samples, latents_before
from pipeline.output.members import CHECKSUM, Member
from pipeline.recipe import Recipe
from stvae.card import Card

SCALE_BYTES = 4
"""Size of a scale, a float32."""


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """Where a member's tensors are found, and their sizes."""

    member: Member
    dtype: torch.dtype
    """Stored type of the values."""
    values: ArrayColumns
    scales: ArrayColumns | None
    """Columns of the scales, for values of type int8."""
    sizes: list[Size]
    """Size (channels, t, h, w) by bucket."""

    @property
    def columns(self) -> list[str]:
        """Every column of the catalog that reading the member needs."""
        arrays = [self.values, *([self.scales] if self.scales else [])]
        return [name for array in arrays for name in (array.offset, array.nbytes, array.checksum)]

    def lay_out(self, codes: list[int], codes_in_step: set[int], start: int) -> MemberLayout:
        """Choose where in the buffer, from byte ``start``, the samples of a batch go. codes: the bucket of each.

        codes_in_step: the buckets of all ranks.
        """
        # Shapes: offsets and scale_offsets have one entry per sample; scale_offsets is empty without scales.
        # Invariant: the values of all samples come first, then, at a multiple of 4 bytes, the scales of all samples.
        # Example: int8, 2 samples of 10 values and 1 scale -> offsets [0 10], end 20, scale_offsets [20 24], scale_end 28.
        sizes = [self.sizes[code] for code in codes]
        pad_thw = tuple(map(max, zip(*(self.sizes[code][1:] for code in codes_in_step), strict=True)))
        steps = [math.prod(size) * self.dtype.itemsize for size in sizes]
        *offsets, end = itertools.accumulate(steps, initial=start)
        if self.scales is None:
            return MemberLayout(self.member, sizes, pad_thw, offsets, end, [], end)
        steps = [math.prod(size[:2]) * SCALE_BYTES for size in sizes]
        *scale_offsets, scale_end = itertools.accumulate(steps, initial=-(-end // SCALE_BYTES) * SCALE_BYTES)
        return MemberLayout(self.member, sizes, pad_thw, offsets, end, scale_offsets, scale_end)


@dataclass(frozen=True, slots=True)
class SpanPlanner:
    """Adds the spans of a batch's tensors."""

    card: Card
    verify: bool
    """Read whole tensors, for their checksums."""

    def add_tensors(
        self,
        pending: PendingBatch,
        plan: MemberPlan,
        layout: MemberLayout,
        content: memoryview,
        starts: list[int],
        blank: list[bool],
    ) -> None:
        """Add the spans of a member's tensors, the scales first. Blanks become zero.

        content: the buffer. starts: first frame of each sample in its clip.
        """
        if plan.scales is not None:
            ends = [*layout.scale_offsets[1:], layout.scale_end]
            for i, (start, end) in enumerate(zip(layout.scale_offsets, ends, strict=True)):
                if blank[i]:
                    content[start:end] = bytes(end - start)
                else:
                    self._add(
                        pending, PendingTensor(i, layout, plan.scales, torch.float32, True, content[start:end]), starts
                    )
        ends = [*layout.offsets[1:], layout.end]
        for i, (start, end) in enumerate(zip(layout.offsets, ends, strict=True)):
            if blank[i]:
                content[start:end] = bytes(end - start)
            else:
                self._add(pending, PendingTensor(i, layout, plan.values, plan.dtype, False, content[start:end]), starts)

    def _add(self, pending: PendingBatch, tensor: PendingTensor, starts: list[int]) -> None:
        """Add the spans of a tensor: one, or one per channel if only some latent frames are wanted.

        Scales are small, so they are always read whole and their checksums compared.
        """
        rows, i, columns = pending.rows, tensor.place, tensor.columns
        stored_t = int(rows["latent_t"][i]) if tensor.layout.member.is_clip else tensor.layout.sizes[i][1]
        stored = stored_t, latents_before(self.card, starts[i])
        shard, offset = rows["shard"][i], int(rows[columns.offset][i])
        if self.verify or tensor.is_scales:
            tensor = read_whole(tensor, stored, int(rows[columns.nbytes][i]))
            assert tensor.whole is not None
            spans = [Span(shard, offset, tensor.whole)]
        else:
            spans = spans_of(Span(shard, offset, tensor.into), tensor.layout.sizes[i], stored)
            tensor.num_spans = len(spans)
        pending.spans += spans
        pending.tensors.append(tensor)


def plan_member(member: Member, samples: Samples, card: Card, recipe: Recipe, options: BatchOptions) -> MemberPlan:
    """Find the columns of a member and the size that it has in each bucket of the samples."""
    if member.is_clip:
        channels = card.latent_channels * (2 if options.latent == "sample" else 1)
        sizes_thw = [bucket.latent_thw for bucket in samples.buckets]
    else:
        channels = card.latent_channels
        clips = [Bucket(bucket.num_frames, bucket.height, bucket.width) for bucket in samples.buckets]
        sizes_thw = [member.latent_thw(clip, card.geometry) for clip in clips]
    names = ("tensor_offset", "tensor_nbytes", CHECKSUM)
    values, scales = (ArrayColumns(*map(column, names)) for column in (member.column, member.scale_column))
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    sizes: list[Size] = [(channels, *size) for size in sizes_thw]
    return MemberPlan(member, dtype, values, scales if dtype == torch.int8 else None, sizes)


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

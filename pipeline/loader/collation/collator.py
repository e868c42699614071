"""Make one batch: find where its bytes are, then turn the bytes in its buffer into tensors.

B batch · C latent channels (twice as many for moments) · t, h, w latent grid
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.bucket import Bucket
from pipeline.errors import IntegrityError
from pipeline.loader.collation.batch import METADATA, SIZES, Batch, pack_tokens, pad_latents, sample_posterior
from pipeline.loader.collation.damage import find_damage
from pipeline.loader.collation.metadata import choose_caption, further_columns
from pipeline.loader.collation.pending import BatchBuffer, MemberLayout, PendingBatch
from pipeline.loader.options import BatchOptions
from pipeline.loader.readers import Span
from pipeline.loader.samples import Samples, latents_before
from pipeline.loader.schedule.epoch import BLANK
from pipeline.loader.schedule.keys import Indices, derive_seed
from pipeline.output.members import CHECKSUM, Member
from pipeline.recipe import Recipe
from stvae.card import Card
from stvae.normalization import normalize_

MAX_REPLACEMENTS = 16
"""Number of samples to try in place of a damaged one."""


class Collator:
    """Prepares the reads of batches and finishes batches that have been read. Safe to call from several threads."""

    def __init__(self, samples: Samples, card: Card, recipe: Recipe, options: BatchOptions, *, remote: bool) -> None:
        """remote: the shards are read from a store, where checking whole tensors costs next to nothing."""
        self._samples = samples
        self._card = card
        self._dtype: torch.dtype = getattr(torch, recipe.dtype)
        self._options = options
        self._device = torch.device(options.device)
        whole = samples.start_frames is None and (recipe.store == "mean" or options.latent == "sample")
        self._verify = remote and whole if options.verify is None else options.verify
        self._channels = card.latent_channels * (2 if options.latent == "sample" else 1)
        members = options.members(recipe)
        self._sizes_thw = {member: _latent_sizes(member, samples, card) for member in members}
        names = ("tensor_offset", "tensor_nbytes", CHECKSUM)
        tensors = [member.column(name) for member in members for name in names]
        captions = [name for name in options.captions if name] if options.captions else ["caption"]
        captions += ["caption"] if "captions" in captions else []
        self._columns = list(dict.fromkeys(["shard", "latent_t", *METADATA, *tensors, *captions]))

    def new_buffer(self) -> BatchBuffer:
        """Return an empty buffer for ``prepare``."""
        return BatchBuffer(self._device)

    def prepare(self, samples: Indices, global_batch: Indices, buffer: BatchBuffer) -> PendingBatch:
        """Find where the bytes of a batch are stored and where in the buffer they go.

        samples: int64 [B], this rank's. global_batch: the samples of the step on all ranks.
        """
        # Shapes: codes is [B]; each layout has one size (t, h, w) and one offset per sample.
        # Invariant: the buffer holds member by member, sample by sample, without gaps; blanks are zero.
        # Example: 2 samples of 80 bytes with a first frame of 16 -> latents at 0 and 80, first_latents at 160 and 176.
        blank = samples == BLANK
        in_step = global_batch[global_batch != BLANK]
        filled = np.where(blank, in_step[0], samples)  # blanks have their bucket's shape
        codes = self._samples.codes[filled]
        pending = PendingBatch(samples.copy(), self._samples.take(filled, self._columns), buffer)
        starts = self._starts(filled)
        num_bytes = 0
        for member, sizes_thw in self._sizes_thw.items():
            largest_thw = sizes_thw[self._samples.codes[in_step]].max(axis=0)
            sizes = [tuple(size) for size in sizes_thw[codes].tolist()]
            layout = MemberLayout(member, sizes, tuple(largest_thw.tolist()), [])
            for size in layout.sizes_thw:
                layout.offsets.append(num_bytes)
                num_bytes += self._num_bytes(size, member)
            layout.end = num_bytes
            pending.layouts.append(layout)
        content = buffer.reserve(num_bytes)
        for layout in pending.layouts:
            for i, (size, offset) in enumerate(zip(layout.sizes_thw, layout.offsets, strict=True)):
                into = content[offset : offset + self._num_bytes(size, layout.member)]
                if blank[i]:
                    into[:] = bytes(len(into))
                else:
                    self._add_spans(pending, i, layout.member, size, latents_before(self._card, starts[i]), into)
        return pending

    def finish(self, pending: PendingBatch, epoch: int, read: Callable[[list[Span]], None]) -> Batch:
        """Make the batch, whose spans have been filled.

        read: reads further spans, to replace damaged samples. Raises IntegrityError for bytes that are not as recorded.
        """
        _copy_parts(pending)
        damaged = find_damage(pending, self._dtype)
        replaced: dict[int, str] = {}
        for i, message in damaged.items():
            if self._options.on_damage == "raise":
                raise IntegrityError(message)
            replaced[i] = pending.rows["id"][i]
            self._replace(pending, i, epoch, read, message)
        batch = self._make(pending, epoch)
        if self._options.on_damage == "replace":
            batch["replaced"] = [replaced.get(i) for i in range(len(pending.samples))]
        return batch

    def _replace(
        self, pending: PendingBatch, i: int, epoch: int, read: Callable[[list[Span]], None], message: str
    ) -> None:
        """Put another sample of the same bucket in place ``i``. The choice follows from seed, epoch and damaged sample."""
        codes, members = self._samples.codes, self._samples.in_epoch(epoch)
        same_bucket = np.flatnonzero(codes == codes[pending.samples[i]])
        if members is not None:
            same_bucket = np.intersect1d(same_bucket, members, assume_unique=True)
        for attempt in range(MAX_REPLACEMENTS):
            chosen = derive_seed(self._options.seed, epoch, "damage", str(pending.rows["id"][i]), attempt)
            row = same_bucket[[int(chosen % np.uint64(len(same_bucket)))]]
            other = self.prepare(row, row, self.new_buffer())
            read(other.spans)
            _copy_parts(other)
            if not find_damage(other, self._dtype):
                break
        else:
            raise IntegrityError(f"{message} (so are {MAX_REPLACEMENTS} samples that were to replace it)")
        pending.samples[i] = row[0]
        for name, values in other.rows.items():
            pending.rows[name][i] = values[0]
        for ours, theirs in zip(pending.layouts, other.layouts, strict=True):
            content = other.buffer.bytes[theirs.offsets[0] : theirs.end]
            pending.buffer.bytes[ours.offsets[i] : ours.offsets[i] + len(content)] = content

    def _make(self, pending: PendingBatch, epoch: int) -> Batch:
        options, rows = self._options, pending.rows
        blank = pending.samples == BLANK
        starts = self._starts(pending.samples)
        seeds: list[int] = []
        if options.latent == "sample" or options.captions is not None:
            names = zip(rows["id"], starts, strict=True)
            seeds = [int(derive_seed(options.seed, epoch, name, *([start] if start else []))) for name, start in names]
        values: dict[str, Any] = {"normalized": options.normalized}
        for layout in pending.layouts:
            sampled = options.latent == "sample" and layout.member.is_clip
            values |= self._member_tensors(layout, pending, seeds if sampled else None, blank)
        pending.buffer.protect_until_copied()
        numbers = {name: torch.from_numpy(rows[name].astype(np.int64)) for name in SIZES}
        numbers["fps"] = torch.from_numpy(rows["fps"].astype(np.float32))
        if self._samples.start_frames is not None:
            numbers["start_frame"] = torch.tensor(starts)
            numbers["num_frames"] = torch.tensor([self._samples.buckets[0].num_frames] * len(starts))
        if options.tail == "pad":
            numbers["valid"] = torch.from_numpy(~blank)
        weights = options.captions
        captions = (
            [choose_caption(rows, i, seed, weights) for i, seed in enumerate(seeds)] if weights else rows["caption"]
        )
        values |= {"caption": captions, "id": rows["id"], "key": rows["key"]}
        if blank.any():
            for name in ("caption", "id", "key"):
                values[name] = ["" if b else text for text, b in zip(values[name], blank, strict=True)]
        for name, column in further_columns(self._samples, pending.samples, options.columns).items():
            values[name] = column.to(self._device) if isinstance(column, Tensor) else column
        return cast(Batch, values | {name: tensor.to(self._device) for name, tensor in numbers.items()})

    def _starts(self, samples: Indices) -> list[int]:
        """Return the first frame of each sample in its clip."""
        starts = self._samples.start_frames
        return [0] * len(samples) if starts is None else starts[samples].tolist()

    def _num_bytes(self, size_thw: tuple[int, int, int], member: Member) -> int:
        channels = self._channels if member.is_clip else self._card.latent_channels
        return channels * size_thw[0] * size_thw[1] * size_thw[2] * self._dtype.itemsize

    def _add_spans(
        self,
        pending: PendingBatch,
        i: int,
        member: Member,
        size_thw: tuple[int, int, int],
        latent_start: int,
        into: memoryview,
    ) -> None:
        """Add the spans of one sample's tensor: one span, or one per channel if only some latent frames are wanted."""
        # Shapes: stored tensors are [C, stored_t, h, w] in C order; a plane is the bytes of one (h, w).
        # Invariant: into gets [C, size_t, h, w], the latent frames from latent_start, of the first C stored channels.
        # Example: 15 stored latent frames, 5 wanted from 10 -> channel c is read at plane 15 * c + 10, 5 planes long.
        rows, plane = pending.rows, size_thw[1] * size_thw[2] * self._dtype.itemsize
        shard, offset, nbytes = (
            rows[name][i] for name in ("shard", member.column("tensor_offset"), member.column("tensor_nbytes"))
        )
        stored_t = rows["latent_t"][i] if member.is_clip else size_thw[0]
        if self._verify:
            whole = into if len(into) == nbytes else memoryview(bytearray(nbytes))
            pending.spans.append(Span(shard, offset, whole))
            pending.checks.append((i, member, whole))
            if whole is not into:
                stored_cb = np.frombuffer(whole, np.uint8).reshape(-1, stored_t * plane)
                channels = len(into) // (size_thw[0] * plane)
                first, last = latent_start * plane, (latent_start + size_thw[0]) * plane
                pending.copies.append((into, stored_cb[:channels, first:last]))
        elif size_thw[0] == stored_t:
            pending.spans.append(Span(shard, offset, into))
        else:
            length = size_thw[0] * plane
            for channel, target in enumerate(range(0, len(into), length)):
                start = offset + (channel * stored_t + latent_start) * plane
                pending.spans.append(Span(shard, start, into[target : target + length]))

    def _member_tensors(
        self, layout: MemberLayout, pending: PendingBatch, seeds: list[int] | None, blank: npt.NDArray[np.bool_]
    ) -> dict[str, Tensor]:
        """Return a member's tensor, and the mask or lengths that its form needs.

        seeds: one per sample, if the posterior is to be sampled. blank: bool [B].
        """
        shapes, count, buffer = self._options.shapes, len(layout.offsets), pending.buffer
        key = layout.member.batch_key
        channels = self._channels if layout.member.is_clip else self._card.latent_channels
        if shapes == "bucket":
            size = (count, channels, *layout.sizes_thw[0])
            x_BCthw = self._convert(buffer, layout.offsets[0], size, seeds)
            if blank.any():
                x_BCthw[torch.from_numpy(blank).to(x_BCthw.device)] = 0
            return {key: x_BCthw}
        each_Cthw = [
            self._convert(buffer, offset, (1, channels, *size), None if seeds is None else [seeds[i]])[0]
            for i, (offset, size) in enumerate(zip(layout.offsets, layout.sizes_thw, strict=True))
        ]
        if shapes == "pack":
            return pack_tokens(each_Cthw, self._options.patch)
        x_BCthw, mask_Bthw = pad_latents(each_Cthw, layout.pad_thw, blank.tolist())
        return {key: x_BCthw} | ({"mask": mask_Bthw} if layout.member.is_clip else {})

    def _convert(self, buffer: BatchBuffer, offset: int, size: tuple[int, ...], seeds: list[int] | None) -> Tensor:
        """Turn stored bytes into a tensor for training: sampled, normalized, in the options' dtype and on their device."""
        options = self._options
        stored = buffer.bytes[offset : offset + int(np.prod(size)) * self._dtype.itemsize].view(self._dtype).view(size)
        x = stored.to(self._device, non_blocking=True)
        if seeds is not None:
            x = sample_posterior(x, seeds)
        if options.normalized:
            x = normalize_(x.to(torch.float32, copy=x is stored), self._card)  # never changes the buffer
        if options.dtype is not None:
            x = x.to(options.dtype)
        may_share_buffer = options.dtype is None and not options.copy
        return x.clone() if x.data_ptr() == stored.data_ptr() and not may_share_buffer else x


def _copy_parts(pending: PendingBatch) -> None:
    """Copy the wanted parts of whole tensors, which were read for their checksums, to their places in the buffer."""
    for into, content in pending.copies:
        np.copyto(np.frombuffer(into, np.uint8), content.reshape(-1))


def _latent_sizes(member: Member, samples: Samples, card: Card) -> Indices:
    """Return the latent size (t, h, w) of a member in each bucket of the samples: int64 [buckets, 3]."""
    if member.is_clip:
        return np.array([bucket.latent_thw for bucket in samples.buckets])
    clips = [Bucket(bucket.num_frames, bucket.height, bucket.width) for bucket in samples.buckets]
    return np.array([member.latent_thw(clip, card.geometry) for clip in clips])

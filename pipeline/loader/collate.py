"""One batch: where its bytes are, and what becomes of them once they are in its buffer.

B batch · C latent channels (twice as many for moments) · t, h, w latent grid
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import IntegrityError
from pipeline.loader.batch import Batch, packed, padded, sample_posterior
from pipeline.loader.epochs import BLANK, Indices, salt
from pipeline.loader.options import Options
from pipeline.loader.readers import Span
from pipeline.loader.samples import Samples, latents_before
from pipeline.output.members import CHECKSUM, Member
from pipeline.recipe import Bucket
from stvae.card import Card
from stvae.normalisation import normalize_

METADATA = ("fps", "height", "width", "num_frames", "id", "key")


class Slot:
    """A reused buffer for the bytes of a batch; pinned where they go on to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device_model = device
        self._copied: Any = None
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, nbytes: int) -> memoryview:
        """Room for so many bytes. Waits for the GPU to have what was in it before."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        if self.bytes.numel() < nbytes:
            self.bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device_model.type == "cuda")
        return self.bytes.numpy().data[:nbytes]

    def copied(self) -> None:
        """The copies to the GPU are under way: not to be overwritten before they are done."""
        if self.device_model.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()


@dataclass(slots=True)
class Part:
    """One member of every sample in a batch."""

    member: Member
    sizes_thw: list[tuple[int, int, int]]
    """Latent size of each sample."""
    pad_thw: tuple[int, int, int]
    """The largest size of the step, on all ranks."""
    offsets: list[int]
    """Byte offset of each sample in the slot."""


@dataclass(slots=True)
class Draft:
    """A batch whose bytes are being read."""

    samples: Indices
    rows: dict[str, Any]
    slot: Slot
    parts: list[Part] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    checks: list[tuple[int, Member, memoryview]] = field(default_factory=list)
    """Sample in the batch, its member, and the member's whole stored tensor."""
    copies: list[tuple[memoryview, Any]] = field(default_factory=list)
    """Parts of tensors that were read whole to be checked."""


class Collator:
    """Drafts batches and finishes them. Safe to call from several threads."""

    def __init__(self, samples: Samples, card: Card, stored_dtype: str, options: Options, seed: int) -> None:
        self._samples = samples
        self._card = card
        self._dtype: torch.dtype = getattr(torch, stored_dtype)
        self._options = options
        self._seed = seed
        self._channels = card.latent_channels * (2 if options.latent == "sample" else 1)
        self._sizes_thw = {member: _latent_sizes(member, samples, card) for member in options.members}
        columns = ("tensor_offset", "tensor_nbytes", CHECKSUM)
        place = [member.column(name) for member in options.members for name in columns]
        captions = [name for name in options.captions if name] if options.captions else ["caption"]
        self._columns = list(dict.fromkeys(["shard", "latent_t", *METADATA, *place, *captions]))

    def draft(self, samples: Indices, step: Indices, slot: Slot) -> Draft:
        """Where a batch's bytes are and where in the slot they go. ``step``: the samples of all ranks."""
        blank = samples == BLANK
        whole = step[step != BLANK]
        filled = np.where(blank, whole[0], samples)  # blanks have their bucket's shape
        codes = self._samples.codes[filled]
        draft = Draft(samples, self._samples.take(filled, self._columns), slot)
        starts = self._starts(filled)
        nbytes = 0
        for member, sizes_thw in self._sizes_thw.items():
            largest_thw = sizes_thw[self._samples.codes[whole]].max(axis=0)
            part = Part(member, [tuple(size) for size in sizes_thw[codes].tolist()], tuple(largest_thw.tolist()), [])
            for size in part.sizes_thw:
                part.offsets.append(nbytes)
                nbytes += self._nbytes(size, member)
            draft.parts.append(part)
        room = slot.reserve(nbytes)
        for part in draft.parts:
            for i, (size, at) in enumerate(zip(part.sizes_thw, part.offsets, strict=True)):
                into = room[at : at + self._nbytes(size, part.member)]
                if blank[i]:
                    into[:] = bytes(len(into))
                else:
                    self._add(draft, i, part.member, size, latents_before(self._card, starts[i]), into)
        return draft

    def finish(self, draft: Draft, epoch: int) -> Batch:
        """The batch, once the spans of its draft are filled. IntegrityError for bytes that are not as recorded."""
        for i, member, content in draft.checks:
            self._check(draft.rows, i, member, content)
        for into, content in draft.copies:
            np.copyto(np.frombuffer(into, np.uint8), content.reshape(-1))
        options, rows = self._options, draft.rows
        blank = draft.samples == BLANK
        starts = self._starts(draft.samples)
        seeds: list[int] = []
        if options.latent == "sample" or options.captions is not None:
            names = zip(rows["id"], starts, strict=True)
            seeds = [int(salt(self._seed, epoch, name, *([start] if start else []))) for name, start in names]
        values: dict[str, Any] = {"normalized": options.normalized}
        for part in draft.parts:
            sampled = options.latent == "sample" and part.member.is_clip
            values |= self._combine(part, draft, seeds if sampled else None, blank)
        draft.slot.copied()
        numbers = {name: torch.from_numpy(rows[name].astype(np.int64)) for name in ("height", "width", "num_frames")}
        numbers["fps"] = torch.from_numpy(rows["fps"].astype(np.float32))
        if self._samples.start_frames is not None:
            numbers["start_frame"] = torch.tensor(starts)
            numbers["num_frames"] = torch.tensor([self._samples.buckets[0].num_frames] * len(starts))
        if options.blanks:
            numbers["valid"] = torch.from_numpy(~blank)
        captions = (
            [self._caption(rows, i, seed) for i, seed in enumerate(seeds)] if options.captions else rows["caption"]
        )
        values |= {"caption": captions, "id": rows["id"], "key": rows["key"]}
        if blank.any():
            for name in ("caption", "id", "key"):
                values[name] = ["" if b else text for text, b in zip(values[name], blank, strict=True)]
        return cast(Batch, values | {name: tensor.to(options.device) for name, tensor in numbers.items()})

    def _starts(self, samples: Indices) -> list[int]:
        starts = self._samples.start_frames
        return [0] * len(samples) if starts is None else starts[samples].tolist()

    def _nbytes(self, size_thw: tuple[int, int, int], member: Member) -> int:
        channels = self._channels if member.is_clip else self._card.latent_channels
        return channels * size_thw[0] * size_thw[1] * size_thw[2] * self._dtype.itemsize

    def _add(
        self, draft: Draft, i: int, member: Member, size_thw: tuple[int, int, int], latent_start: int, into: memoryview
    ) -> None:
        """The spans of one tensor: one, or one per channel where only some latent frames are wanted."""
        rows, plane = draft.rows, size_thw[1] * size_thw[2] * self._dtype.itemsize
        shard, offset, nbytes = (
            rows[name][i] for name in ("shard", member.column("tensor_offset"), member.column("tensor_nbytes"))
        )
        stored_t = rows["latent_t"][i] if member.is_clip else size_thw[0]
        if self._options.verify:
            whole = into if len(into) == nbytes else memoryview(bytearray(nbytes))
            draft.spans.append(Span(shard, offset, whole))
            draft.checks.append((i, member, whole))
            if whole is not into:
                stored_cb = np.frombuffer(whole, np.uint8).reshape(-1, stored_t * plane)
                channels = len(into) // (size_thw[0] * plane)
                first, last = latent_start * plane, (latent_start + size_thw[0]) * plane
                draft.copies.append((into, stored_cb[:channels, first:last]))
        elif size_thw[0] == stored_t:
            draft.spans.append(Span(shard, offset, into))
        else:
            length = size_thw[0] * plane
            for channel, at in enumerate(range(0, len(into), length)):
                start = offset + (channel * stored_t + latent_start) * plane
                draft.spans.append(Span(shard, start, into[at : at + length]))

    def _check(self, rows: dict[str, Any], i: int, member: Member, content: memoryview) -> None:
        expected, got = rows[member.column(CHECKSUM)][i], google_crc32c.value(bytes(content))
        if got != expected:
            raise IntegrityError(
                f"{rows['shard'][i]}: the tensor of {rows['id'][i]} ({rows['key'][i]}) at byte "
                f"{rows[member.column('tensor_offset')][i]} is damaged: crc32c {got}, expected {expected}; "
                "jobs/verify_dataset.py finds all that are"
            )

    def _combine(self, part: Part, draft: Draft, seeds: list[int] | None, blank: Any) -> dict[str, Tensor]:
        """The part's tensor, and what its form needs beside it."""
        shapes, count = self._options.shapes, len(part.offsets)
        key = part.member.batch_key
        channels = self._channels if part.member.is_clip else self._card.latent_channels
        if shapes == "bucket":
            size = (count, channels, *part.sizes_thw[0])
            x_BCthw = self._train(draft.slot, part.offsets[0], size, seeds)
            if blank.any():
                x_BCthw[torch.from_numpy(blank).to(x_BCthw.device)] = 0
            return {key: x_BCthw}
        each_Cthw = [
            self._train(draft.slot, at, (1, channels, *size), None if seeds is None else [seeds[i]])[0]
            for i, (at, size) in enumerate(zip(part.offsets, part.sizes_thw, strict=True))
        ]
        if shapes == "pack":
            return packed(each_Cthw, self._options.patch)
        x_BCthw, mask_Bthw = padded(each_Cthw, part.pad_thw, blank.tolist())
        return {key: x_BCthw} | ({"mask": mask_Bthw} if part.member.is_clip else {})

    def _train(self, slot: Slot, at: int, size: tuple[int, ...], seeds: list[int] | None) -> Tensor:
        """Stored bytes as what training takes: sampled, normalised, in its dtype, on its device."""
        options = self._options
        stored = slot.bytes[at : at + int(np.prod(size)) * self._dtype.itemsize].view(self._dtype).view(size)
        x = stored.to(options.device, non_blocking=True)
        if seeds is not None:
            x = sample_posterior(x, seeds)
        if options.normalized:
            x = normalize_(x.to(torch.float32, copy=x is stored), self._card)  # one new tensor, the slot stays as it is
        if options.dtype is not None:
            x = x.to(options.dtype)
        lent = options.dtype is None and not options.copy
        return x.clone() if x.data_ptr() == stored.data_ptr() and not lent else x

    def _caption(self, rows: dict[str, Any], i: int, seed: int) -> str | None:
        assert self._options.captions is not None
        found = {name: rows[name][i] if name else "" for name in self._options.captions}
        found = {name: text for name, text in found.items() if text is not None and text != []}
        if not found:
            return None
        rng = np.random.default_rng(seed)
        weights = np.cumsum([self._options.captions[name] for name in found])
        chosen = list(found.values())[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
        return str(chosen[rng.integers(len(chosen))]) if isinstance(chosen, list) else str(chosen)


def _latent_sizes(member: Member, samples: Samples, card: Card) -> Indices:
    """Latent size (t, h, w) of a member in each of the samples' buckets: int64 [buckets, 3]."""
    if member.is_clip:
        return np.array([bucket.latent_thw for bucket in samples.buckets])
    clips = [Bucket(bucket.num_frames, bucket.height, bucket.width) for bucket in samples.buckets]
    return np.array([member.latent_thw(clip, card.geometry) for clip in clips])

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

from pipeline.errors import IntegrityError
from pipeline.loader.collation.batch import METADATA, SIZES, Batch, pack_tokens, pad_latents
from pipeline.loader.collation.conversion import Conversion
from pipeline.loader.collation.damage import find_damage
from pipeline.loader.collation.member_plan import SpanPlanner, plan_member
from pipeline.loader.collation.metadata import further_columns
from pipeline.loader.collation.pending import BatchBuffer, MemberLayout, PendingBatch
from pipeline.loader.options import BatchOptions
from pipeline.loader.readers import Filled, Span
from pipeline.loader.samples import Samples
from pipeline.loader.schedule.epoch import BLANK
from pipeline.loader.schedule.keys import Indices, derive_seed
from pipeline.loader.text.captions import choose_caption
from pipeline.loader.text.collator import TextCollator
from pipeline.loader.text.layer import TextLayer
from pipeline.recipe import Recipe
from stvae.card import Card

MAX_REPLACEMENTS = 16
"""Number of samples to try in place of a damaged one."""


class Collator:
    """Prepares the reads of batches and finishes batches that are read. Safe to call from several threads."""

    def __init__(
        self,
        samples: Samples,
        card: Card,
        recipe: Recipe,
        options: BatchOptions,
        *,
        remote: bool,
        text: TextLayer | None = None,
    ) -> None:
        """remote: the shards are in a store, where checking whole tensors costs next to nothing. text: a text layer."""
        self._samples = samples
        self._dtype: torch.dtype = getattr(torch, recipe.dtype)
        self._options = options
        self._device = torch.device(options.device)
        self._conversion = Conversion(card, self._dtype, options)
        whole = samples.start_frames is None and (recipe.store != "moments" or options.latent == "sample")
        self._spans = SpanPlanner(card, remote and whole if options.verify is None else options.verify)
        self._members = [plan_member(member, samples, card, recipe, options) for member in options.members(recipe)]
        self._texts = None if text is None else TextCollator(text, options, remote=remote)
        captions = [name for name in options.captions if name] if options.captions else ["caption"]
        captions += ["caption"] if "captions" in captions else []
        tensors = [name for plan in self._members for name in plan.columns]
        self._columns = list(dict.fromkeys(["shard", "latent_t", *METADATA, *tensors, *captions]))

    @property
    def lends_buffer(self) -> bool:
        """True if a batch uses the memory of its buffer, which must not be read into before the next batch is due."""
        return self._conversion.lends_buffer

    def new_buffer(self) -> BatchBuffer:
        """Return an empty buffer for ``prepare``."""
        return BatchBuffer(self._device)

    def prepare(self, samples: Indices, global_batch: Indices, buffer: BatchBuffer, epoch: int) -> PendingBatch:
        """Find where the bytes of a batch are stored and where in the buffer they go.

        samples: int64 [B], this rank's. global_batch: the samples of the step on all ranks.
        """
        # Shapes: codes is [B]; each layout has one size (C, t, h, w) and one offset per sample.
        # Invariant: the buffer holds member by member, sample by sample; blanks are zero.
        # Example: 2 samples of 80 bytes with a first frame of 16 -> latents at 0 and 80, first_latents at 160 and 176.
        blank = samples == BLANK
        in_step = global_batch[global_batch != BLANK]
        filled = np.where(blank, in_step[0], samples)  # blanks have their bucket's shape
        codes = self._samples.codes[filled].tolist()
        pending = PendingBatch(samples.copy(), self._samples.take(filled, self._columns), buffer)
        codes_in_step = set(self._samples.codes[in_step].tolist())
        num_bytes = 0
        for plan in self._members:
            pending.layouts.append(plan.lay_out(codes, codes_in_step, num_bytes))
            num_bytes = pending.layouts[-1].scale_end
        content = buffer.reserve(num_bytes)
        is_blank = blank.tolist()
        starts = self._starts(filled)
        for plan, layout in zip(self._members, pending.layouts, strict=True):
            self._spans.add_tensors(pending, plan, layout, content, starts, is_blank)
        pending.seeds = self._seeds(pending, epoch)
        self._begin_texts(pending)
        return pending

    def finish(
        self,
        pending: PendingBatch,
        epoch: int,
        filled: Filled,
        read: Callable[[list[Span]], Filled],
    ) -> Batch:
        """Make the batch. Each tensor is checked and converted after it has been read, while the processor's cache has it.

        filled: waits for the spans of the batch. read: reads further spans, to replace damaged samples.
        Raises IntegrityError for bytes that are not as recorded.
        """
        damaged = self._receive(pending, filled)
        replaced: dict[int, str] = {}
        for i, message in damaged.items():
            if self._options.on_damage == "raise":
                raise IntegrityError(message)
            replaced[i] = pending.rows["id"][i]
            self._replace(pending, i, epoch, read, message)
        if replaced:
            self._read_texts_again(pending, read)
        batch = self._make(pending)
        if self._options.on_damage == "replace":
            batch["replaced"] = [replaced.get(i) for i in range(len(pending.samples))]
        return batch

    def _receive(self, pending: PendingBatch, filled: Filled) -> dict[int, str]:
        """Wait for the tensors of a batch, check and convert each. Returns what is wrong with damaged ones, by place."""
        blank = (pending.samples == BLANK).tolist()
        for layout in pending.layouts:
            self._conversion.begin(layout, blank)
        damaged: dict[int, str] = {}
        for tensor in pending.tensors:
            for _ in range(tensor.num_spans):
                next(filled)
            if tensor.part is not None:
                np.copyto(np.frombuffer(tensor.into, np.uint8), tensor.part.reshape(-1))
            problem = find_damage(pending, tensor)
            if problem is not None:
                damaged.setdefault(tensor.place, problem)
            elif not tensor.is_scales:  # they come before their values
                self._conversion.convert(tensor.layout, pending.buffer, tensor.place)
        if self._texts is not None and pending.texts is not None:
            for place, problem in self._texts.receive(pending.texts, filled):
                damaged.setdefault(place, problem)
        return damaged

    def _replace(
        self, pending: PendingBatch, i: int, epoch: int, read: Callable[[list[Span]], Filled], message: str
    ) -> None:
        """Put another sample of the same bucket in place ``i``. The choice follows from seed, epoch and damaged sample."""
        codes, members = self._samples.codes, self._samples.in_epoch(epoch)
        same_bucket = np.flatnonzero(codes == codes[pending.samples[i]])
        if members is not None:
            same_bucket = np.intersect1d(same_bucket, members, assume_unique=True)
        for attempt in range(MAX_REPLACEMENTS):
            chosen = derive_seed(self._options.seed, epoch, "damage", str(pending.rows["id"][i]), attempt)
            row = same_bucket[[int(chosen % np.uint64(len(same_bucket)))]]
            other = self.prepare(row, row, self.new_buffer(), epoch)
            if not self._receive(other, read(other.spans)):
                break
        else:
            raise IntegrityError(f"{message} (so are {MAX_REPLACEMENTS} samples that were to replace it)")
        pending.samples[i], pending.captions[i] = row[0], other.captions[0]
        pending.seeds[i : i + 1] = other.seeds
        if pending.texts is not None and other.texts is not None:
            pending.texts.chosen[i] = other.texts.chosen[0]
        for name, values in other.rows.items():
            pending.rows[name][i] = values[0]
        for ours, theirs in zip(pending.layouts, other.layouts, strict=True):
            content = other.buffer.bytes[theirs.offsets[0] : theirs.end]
            pending.buffer.bytes[ours.offsets[i] : ours.offsets[i] + len(content)] = content
            scales, new_scales = ours.scales(pending.buffer, i), theirs.scales(other.buffer, 0)
            if scales is not None and new_scales is not None:
                scales.copy_(new_scales)
            self._conversion.convert(ours, pending.buffer, i)

    def _make(self, pending: PendingBatch) -> Batch:
        options, rows = self._options, pending.rows
        blank = pending.samples == BLANK
        starts = self._starts(pending.samples)
        values: dict[str, Any] = {"normalized": options.normalized}
        for layout in pending.layouts:
            values |= self._member_tensors(
                layout, pending, pending.seeds if self._conversion.is_sampled(layout) else None, blank
            )
        pending.buffer.protect_until_copied()
        numbers = {name: torch.from_numpy(rows[name].astype(np.int64)) for name in SIZES}
        numbers["fps"] = torch.from_numpy(rows["fps"].astype(np.float32))
        if self._samples.start_frames is not None:
            numbers["start_frame"] = torch.tensor(starts)
            numbers["num_frames"] = torch.tensor([self._samples.buckets[0].num_frames] * len(starts))
        if options.tail == "pad":
            numbers["valid"] = torch.from_numpy(~blank)
        values |= {"caption": pending.captions, "id": rows["id"], "key": rows["key"]}
        if blank.any():
            for name in ("caption", "id", "key"):
                values[name] = ["" if b else text for text, b in zip(values[name], blank, strict=True)]
        for name, column in further_columns(self._samples, pending.samples, options.columns).items():
            values[name] = column.to(self._device) if isinstance(column, Tensor) else column
        if self._texts is not None and pending.texts is not None:
            values |= self._texts.finish(pending.texts, self._device)
        return cast(Batch, values | {name: tensor.to(self._device) for name, tensor in numbers.items()})

    def _seeds(self, pending: PendingBatch, epoch: int) -> list[int]:
        """Return a seed per sample, from which its posterior sample and its caption follow; none if neither is drawn."""
        options = self._options
        if options.latent != "sample" and options.captions is None and self._texts is None:
            return []
        names = zip(pending.rows["id"], self._starts(pending.samples), strict=True)
        return [int(derive_seed(self._options.seed, epoch, name, *([start] if start else []))) for name, start in names]

    def _begin_texts(self, pending: PendingBatch) -> None:
        """Choose the captions of a batch, and add the spans of their embeddings."""
        weights, rows, samples = self._options.captions, pending.rows, pending.samples
        if weights is None and self._texts is None:
            pending.captions = rows["caption"]
            return
        captions = [choose_caption(rows, i, seed, weights) for i, seed in enumerate(pending.seeds)]
        pending.captions = [caption.text for caption in captions]
        if self._texts is not None:
            table_rows = np.where(samples == BLANK, BLANK, self._samples.rows[samples])
            pending.texts = self._texts.choose(captions, table_rows.tolist(), pending.seeds, rows["id"])
            pending.captions = pending.texts.captions
            pending.spans += pending.texts.spans

    def _read_texts_again(self, pending: PendingBatch, read: Callable[[list[Span]], Filled]) -> None:
        """Read the texts of a batch in which samples were replaced: their lengths may differ."""
        if self._texts is None or pending.texts is None:
            return
        pending.texts = self._texts.prepare(pending.texts.chosen)
        for _, problem in self._texts.receive(pending.texts, read(pending.texts.spans)):
            raise IntegrityError(problem)

    def _starts(self, samples: Indices) -> list[int]:
        """Return the first frame of each sample in its clip."""
        starts = self._samples.start_frames
        return [0] * len(samples) if starts is None else starts[samples].tolist()

    def _member_tensors(
        self, layout: MemberLayout, pending: PendingBatch, seeds: list[int] | None, blank: npt.NDArray[np.bool_]
    ) -> dict[str, Tensor]:
        """Return a member's tensor, and the mask or lengths that its form needs.

        seeds: one per sample, if the posterior is to be sampled. blank: bool [B].
        """
        key, shapes = layout.member.batch_key, self._options.shapes
        if shapes == "bucket":
            if layout.latents is not None:
                return {key: layout.latents}
            stored = pending.buffer.bytes[layout.offsets[0] : layout.end].view(self._dtype)
            stored_BCthw = stored.view(len(layout.sizes), *layout.sizes[0])
            x_BCthw = self._conversion.whole(stored_BCthw, layout.all_scales(pending.buffer), seeds)
            if blank.any():
                x_BCthw[torch.from_numpy(blank).to(x_BCthw.device)] = 0
            return {key: x_BCthw}
        each_Cthw = layout.converted
        if each_Cthw is None:
            each_Cthw = []
            for i in range(len(layout.sizes)):
                scales_Ct11 = layout.scales(pending.buffer, i)
                x_1Cthw = self._conversion.whole(
                    layout.content(pending.buffer, i, self._dtype)[None],
                    None if scales_Ct11 is None else scales_Ct11[None],
                    None if seeds is None else [seeds[i]],
                )
                each_Cthw.append(x_1Cthw[0])
        if shapes == "pack":
            return pack_tokens(each_Cthw, self._options.patch)
        x_BCthw, mask_Bthw = pad_latents(each_Cthw, layout.pad_thw, blank.tolist())
        return {key: x_BCthw} | ({"mask": mask_Bthw} if layout.member.is_clip else {})

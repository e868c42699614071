"""Makes the texts of a batch: finds where their bytes are, then checks them and gives their tensors names.

B batch · L tokens · D width
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.loader.collation.damage import has_non_finite
from pipeline.loader.collation.memory import RecycledMemory
from pipeline.loader.options import BatchOptions
from pipeline.loader.readers import Filled, Span
from pipeline.loader.schedule.epoch import BLANK
from pipeline.loader.text.captions import ChosenCaption, choose_text
from pipeline.loader.text.layer import NO_ROW, TextLayer
from pipeline.loader.text.pending import ChosenText, PendingArray, PendingTexts
from pipeline.output.layers.text_card import TextArray


class TextCollator:
    """Reads the embeddings of the texts of batches into tensors. Safe to call from several threads."""

    def __init__(self, layer: TextLayer, options: BatchOptions, *, remote: bool) -> None:
        """remote: the layer is read from a store, where comparing checksums costs next to nothing."""
        self._layer = layer
        self._packed = options.shapes == "pack"
        self._verify = remote if options.verify is None else options.verify
        self._dropout = options.text_dropout
        self._dtype: torch.dtype = getattr(torch, layer.dtype)
        self._memory = RecycledMemory((2 * options.threads + 2) * len(layer.card.arrays))

    def choose(
        self, captions: Sequence[ChosenCaption], table_rows: Sequence[int], seeds: Sequence[int], ids: Sequence[str]
    ) -> PendingTexts:
        """Choose the embeddings of the captions of a batch, and prepare to read them.

        table_rows: each sample's row in the output's index, ``BLANK`` for blanks. ids: the samples' ids, for messages.
        """
        chosen = []
        for caption, row, seed, sample in zip(captions, table_rows, seeds, ids, strict=True):
            if row == BLANK:
                chosen.append(ChosenText(NO_ROW, NO_ROW, ""))
            else:
                chosen.append(choose_text(self._layer, caption, row, seed, self._dropout, sample))
        return self.prepare(chosen)

    def prepare(self, chosen: Sequence[ChosenText]) -> PendingTexts:
        """Make the tensors of a batch, and the spans that fill them. ``receive`` sets the rest to zero."""
        pending = PendingTexts(list(chosen))
        for array in self._layer.card.arrays:
            self._add_array(pending, array)
        return pending

    def receive(self, pending: PendingTexts, filled: Filled) -> Iterator[tuple[int, str]]:
        """Wait for the texts of a batch. Yields the place and the damage of each that is damaged."""
        for padding in pending.padding:  # here, because threads of the loader do it while the training loop goes on
            np.frombuffer(padding, np.uint8).fill(0)
        for n in range(len(pending.spans)):
            next(filled)
            if (damage := self._find_damage(pending, n)) is not None:
                yield damage

    def _find_damage(self, pending: PendingTexts, n: int) -> tuple[int, str] | None:
        """Return the place and the damage of the text that span ``n`` has filled; None if it is as it was written."""
        place, name, content = pending.checks[n]
        row, problem = pending.chosen[place].row, ""
        if self._verify:
            expected, got = int(self._layer.places[name].checksum[row]), google_crc32c.value(bytes(content))
            problem = f"crc32c {got}, expected {expected}" if got != expected else ""
        if not problem and has_non_finite(np.frombuffer(content, np.uint8), self._dtype):
            problem = "some values are not finite"
        if not problem:
            return None
        span = pending.spans[n]
        return place, (
            f"{span.shard}: the array '{name}' of a text at byte {span.offset} is damaged: {problem}; run "
            "jobs/verify_dataset.py to find all damaged texts"
        )

    def finish(self, pending: PendingTexts, device: torch.device) -> dict[str, Any]:
        """Return the entries of the batch."""
        values: dict[str, Any] = {"text_dropped": torch.tensor([text.dropped for text in pending.chosen])}
        for position, array in enumerate(pending.arrays):
            values |= self._entries(array, is_main=position == 0)
        return {name: value.to(device) for name, value in values.items()}

    def _entries(self, pending: PendingArray, *, is_main: bool) -> Mapping[str, Tensor]:
        """Return the entries of one array under the names of ``Batch``."""
        array, name = pending.array, pending.array.name
        if array.form == "vector":
            return {"text_pooled" if self._is_first_vector(array) else f"text_{name}": pending.tensor}
        prefix = "text" if is_main else f"text_{name}"
        entries = {f"{prefix}_embeddings": pending.tensor}
        if self._packed:
            return entries | {f"{prefix}_lengths": torch.tensor(pending.lengths, dtype=torch.int32)}
        return entries | {f"{prefix}_mask": _mask(array, pending.tensor.shape[1], pending.token_lengths)}

    def _is_first_vector(self, array: TextArray) -> bool:
        return next(each for each in self._layer.card.arrays if each.form == "vector") is array

    def _add_array(self, pending: PendingTexts, array: TextArray) -> None:
        # Shapes: slots is [B + 1], where each text's rows begin in the tensor, seen as rows of array.width values.
        # Invariant: every row of the tensor is either in a span or in the list of rows to be zero.
        # Example: texts of 2 and 3 rows, padded to 4 on the right -> slots [0 4 8], spans of rows 0:2 and 4:7.
        places, is_vector = self._layer.places[array.name], array.form == "vector"
        rows = [0 if text.row == NO_ROW else int(places.num_rows[text.row]) for text in pending.chosen]
        masked = [0 if text.mask_row == NO_ROW else int(places.length[text.mask_row]) for text in pending.chosen]
        lengths, slots = rows, list(range(len(rows) + 1))
        size: tuple[int, ...] = (len(rows), array.width)
        if self._packed and not is_vector:
            lengths = [max(count, length) for count, length in zip(rows, masked, strict=True)]
            slots = list(itertools.accumulate(lengths, initial=0))
            size = (slots[-1], array.width)
        elif not is_vector:
            longest = array.max_tokens if array.fixed_length else max(1, *rows, *masked)
            slots, size = [longest * place for place in slots], (len(rows), longest, array.width)
        tensor = self._memory.empty(size, self._dtype)
        memory = tensor.view(-1).view(torch.uint8).numpy().data
        is_left = array.padding_side == "left" and not is_vector
        row_bytes = array.width * self._dtype.itemsize
        for place, (count, (start, stop)) in enumerate(zip(rows, itertools.pairwise(slots), strict=True)):
            middle = (stop - count if is_left else start + count) * row_bytes
            first, second = memory[start * row_bytes : middle], memory[middle : stop * row_bytes]
            content, padding = (second, first) if is_left else (first, second)
            if padding:
                pending.padding.append(padding)
            if content:
                self._add_span(pending, array, place, content)
        pending.arrays.append(PendingArray(array, tensor, lengths, masked))

    def _add_span(self, pending: PendingTexts, array: TextArray, place: int, into: memoryview) -> None:
        row = pending.chosen[place].row
        shard = self._layer.shards[self._layer.shard_codes[row]]
        pending.spans.append(Span(shard, int(self._layer.places[array.name].offset[row]), into))
        pending.checks.append((place, array.name, into))


def _mask(array: TextArray, length: int, token_lengths: list[int]) -> Tensor:
    """Return the mask of tokens, bool ``[B,length]``."""
    positions: npt.NDArray[np.int64] = np.arange(length)
    counts = np.array(token_lengths)[:, None]
    is_token = positions >= length - counts if array.padding_side == "left" else positions < counts
    return torch.from_numpy(is_token)

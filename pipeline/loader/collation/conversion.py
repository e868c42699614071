"""Turn stored latents into latents for training: sampled, normalized, in the options' dtype and on their device.

B batch · C latent channels (twice as many for moments) · t, h, w latent grid
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from pipeline.loader.collation.batch import sample_posterior
from pipeline.loader.collation.memory import RecycledMemory
from pipeline.loader.collation.pending import BatchBuffer, MemberLayout
from pipeline.loader.options import BatchOptions
from stvae.card import Card
from stvae.normalization import normalize_, statistics

_THREAD_COUNT = threading.Lock()
"""Held while the number of torch's threads is changed."""


class Conversion:
    """Converts the tensors of batches. Safe to call from several threads.

    On the CPU, each sample is converted after it has been read, while it is in the processor's cache. The results are in
    memory of earlier batches that nothing refers to any more.
    """

    def __init__(self, card: Card, stored_dtype: torch.dtype, options: BatchOptions) -> None:
        self._card = card
        self._stored_dtype = stored_dtype
        self._options = options
        self._device = torch.device(options.device)
        is_float = stored_dtype.is_floating_point  # int8 becomes float32
        self._dtype = options.dtype or (stored_dtype if is_float and not options.normalized else torch.float32)
        self._memory = RecycledMemory(max_free=2 * options.threads + 2)
        self._scratch = RecycledMemory(max_free=options.threads)
        self._statistics: dict[int, tuple[Tensor, Tensor]] = {}
        """Shift and scale by number of latent frames."""
        unchanged = options.dtype is None and not options.normalized and not options.copy and is_float
        self.lends_buffer = unchanged or self._device.type != "cpu"
        """True if batches, or copies to their device, use the buffer's memory after ``finish``."""

    def begin(self, layout: MemberLayout, blank: list[bool]) -> None:
        """Make the tensors that ``convert`` writes to, unless the conversion is one for whole batches.

        blank: for each sample, whether it is a blank. Blanks become zero.
        """
        if self.lends_buffer or self.is_sampled(layout):
            return
        if self._options.shapes == "bucket":
            layout.latents = self._memory.empty((len(layout.sizes), *layout.sizes[0]), self._dtype)
            layout.converted = list(layout.latents.unbind())
        else:
            layout.converted = [self._memory.empty(size, self._dtype) for size in layout.sizes]
        for is_blank, x_Cthw in zip(blank, layout.converted, strict=True):
            if is_blank:
                x_Cthw.zero_()

    def convert(self, layout: MemberLayout, buffer: BatchBuffer, i: int) -> None:
        """Convert sample ``i``, which has been read, to the tensor that ``begin`` made for it."""
        if layout.converted is None:
            return
        stored_Cthw, out_Cthw = layout.content(buffer, i, self._stored_dtype), layout.converted[i]
        scales_Ct11 = layout.scales(buffer, i)
        if not self._options.normalized and scales_Ct11 is None:
            out_Cthw.copy_(stored_Cthw)
            return
        is_float32 = out_Cthw.dtype == torch.float32
        x_Cthw = out_Cthw if is_float32 else self._scratch.empty(layout.sizes[i], torch.float32)
        x_Cthw.copy_(stored_Cthw)
        if scales_Ct11 is not None:
            x_Cthw.mul_(scales_Ct11)
        if self._options.normalized:
            latent_t = layout.sizes[i][1]
            if latent_t not in self._statistics:
                self._statistics[latent_t] = statistics(self._card, latent_t)
            normalize_(x_Cthw, *self._statistics[latent_t])
        if not is_float32:
            out_Cthw.copy_(x_Cthw)

    def is_sampled(self, layout: MemberLayout) -> bool:
        """Return whether a member's tensors are samples of the posterior."""
        return self._options.latent == "sample" and layout.member.is_clip

    def whole(self, stored_BCthw: Tensor, scales_BCt11: Tensor | None, seeds: list[int] | None) -> Tensor:
        """Convert the samples of a batch together. The result may share the memory of the stored tensor.

        scales_BCt11: those of int8. seeds: one per sample, if the posterior is to be sampled.
        """
        x_BCthw = stored_BCthw.to(self._device, non_blocking=True)
        if scales_BCt11 is not None:
            x_BCthw = x_BCthw * scales_BCt11.to(self._device, non_blocking=True)
        if seeds is not None:
            x_BCthw = sample_posterior(x_BCthw, seeds)
        if self._options.normalized:
            shift, scale = statistics(self._card, x_BCthw.shape[-3], x_BCthw.device)
            is_stored = x_BCthw is stored_BCthw
            x_BCthw = normalize_(x_BCthw.to(torch.float32, copy=is_stored), shift, scale)  # never changes the buffer
        return x_BCthw if self._options.dtype is None else x_BCthw.to(self._options.dtype)


def compute_in_one_thread() -> None:
    """Let torch compute in the calling thread alone, not in a pool of threads that torch would make for it.

    Readers convert in several threads already, and such pools would keep each other waiting.
    """
    # torch.set_num_threads changes the calling thread, and what later threads start with. A thread that ends at once
    # sets the latter back.
    with _THREAD_COUNT:
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        restoring = threading.Thread(target=torch.set_num_threads, args=(count,))
        restoring.start()
        restoring.join()

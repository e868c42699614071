"""Section ``memory``: micro-batches in a process whose memory really runs out, through the product's MicroBatchEncoder.

Each step of its ladder is tried under a cap on the memory that lies between the needs of two steps: all clips at once,
clip by clip, in tiles, a reject. The needs are measured first, without a cap. On a GPU the cap is a fraction of its
memory; on a CPU it is a limit of the address space.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.bucket import Bucket
from pipeline.encode.micro_batches import DecodedClip, MicroBatchEncoder
from pipeline.encode.utilization import Utilization
from pipeline.recipe import Recipe
from pipeline.sources.item import Item
from stvae.vae import VAE
from tests.gpu import tiny
from tests.gpu.full_size import Model, build
from tests.gpu.report import Report
from tests.support.plain_clips import clip_of, plain_facts

WIDE = {
    "cuda": Model("AutoencoderKLWan", {"base_dim": 64, "dim_mult": [1] * 4}, (9, 768, 768), micro_batch=4),
    "cpu": Model("AutoencoderKLWan", {"base_dim": 16, "dim_mult": [1] * 4, "num_res_blocks": 1}, (1, 192, 192), 8),
}
"""A VAE by device. Every step of the ladder needs clearly less memory than the one before."""
TILE = {"cuda": 256, "cpu": 96}
"""Height and width of its tiles."""
HEADROOM = 1.25
"""Factor between what a step held without a cap and the cap under which it must work."""
UPLOADS = 2
"""Copies of the pixels that the product makes before it encodes, beyond what the needs count."""
EXACT = 1e-4
MIB = 1 << 20
MAX_LEFT_BYTES = 16 * MIB
"""Memory that may still be in use after a micro-batch; its pixels alone are more."""
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Numbers of the C library's ``mallopt``."""


@dataclass(frozen=True)
class Step:
    """One step of the ladder, taken without a cap."""

    used: int
    """Largest amount of memory in use at once, in bytes, beyond what was in use before. A lower cap is not enough."""
    held: int
    """Largest amount that the process held, with what torch keeps for later. A cap of this size is enough."""
    moments: Tensor
    """Moments of the first clip."""


def run(report: Report) -> None:
    """Measure the needs, then add a row for every step under the cap that should lead to it."""
    model = WIDE[report.device]
    if not report.on_gpu:
        torch.set_num_threads(1)  # threads that begin later would take memory of their own
        _return_freed_memory()
    vae, _ = build(model, report.device, "float32")
    side = TILE[report.device]
    sizes = {"tile_sample_min_height": side, "tile_sample_min_width": side}
    strides = {"tile_sample_stride_height": side * 3 // 4, "tile_sample_stride_width": side * 3 // 4}
    vae.model.model.enable_tiling(**sizes, **strides)
    vae.model.model.disable_tiling()
    pixels = tiny.random_clips(model.size, model.micro_batch)
    for tiled in (False, True):  # libraries then have what they keep for ever
        vae.encode(pixels[:1, :, :, : side + 32, : side + 32], tiled=tiled)
    steps = {step: measure(report.device, vae, pixels, step) for step in ("tiled", "single", "whole")}
    shown = ", ".join(f"{name} {step.used / MIB:.0f} MiB" for name, step in steps.items())
    frames, height, width = model.size
    report.measured(f"needs of {len(pixels)} clips {height}x{width}x{frames} in a small Wan", shown)
    encoder = MicroBatchEncoder(vae, recipe_of(model))
    try:
        _check(report, encoder, pixels, None, int(0.5 * steps["tiled"].used), None)
        for name, above in (("tiled", "single"), ("single", "whole"), ("whole", None)):
            cap_bytes = int(HEADROOM * steps[name].held)
            if above and cap_bytes >= steps[above].used:
                report.not_run(f"{name} after running out", f"a cap that it needs leaves room for {above}")
            else:
                _check(report, encoder, pixels, name, cap_bytes, steps[name].moments)
    finally:
        encoder.queue.close()


def _check(
    report: Report, encoder: MicroBatchEncoder, pixels: Tensor, step: str | None, cap_bytes: int, moments: Tensor | None
) -> None:
    """Encode a micro-batch under a cap, and add rows for the step that it took and for the memory it left."""
    before = _memory_in_use(report.device)
    with Utilization().unit() as activities, _cap(report.device, cap_bytes + UPLOADS * pixels.nbytes):
        results = encoder.submit(decoded_clips(pixels), activities).result()
    encoded = next(iter(results.values()))
    path = None if encoded is None else encoded.encode_path
    shown = path or "reject"
    passed = path == step
    if encoded is not None and moments is not None and passed:
        difference = float((torch.from_numpy(encoded.members["latent"]) - moments).abs().max())
        shown += f", differs from the same without a cap by {difference:.1e}"
        passed = difference <= EXACT
    report.check(f"cap of {cap_bytes / MIB:.0f} MiB, expected {step or 'reject'}", passed, shown)
    del results, encoded
    left_bytes = _memory_in_use(report.device) - before
    report.check(
        f"memory given back after {step or 'reject'}", left_bytes <= MAX_LEFT_BYTES, f"{left_bytes / MIB:.1f} MiB left"
    )


def recipe_of(model: Model) -> Recipe:
    """A recipe whose only bucket is the model's size."""
    return Recipe(
        vae="random", buckets=(Bucket(*model.size),), micro_batch=(model.micro_batch,), compute_dtype="float32"
    )


def decoded_clips(pixels_BCTHW: Tensor) -> list[DecodedClip]:
    """Clips as decoding gives them."""
    num_frames, height, width = pixels_BCTHW.shape[2:]
    return [
        DecodedClip(
            Item(ordinal=number, key=str(number), uri=""),
            plain_facts(num_frames, height, width),
            clip_of(Bucket(num_frames, height, width), np.ascontiguousarray(clip.permute(1, 2, 3, 0).numpy())),
            f"{number:020x}",
        )
        for number, clip in enumerate(pixels_BCTHW)
    ]


def measure(device: str, vae: VAE, pixels: Tensor, name: str) -> Step:
    """Take a step of the ladder without a cap. On a CPU, the step must need more memory than all before."""
    before = _memory_in_use(device)
    on_device = vae.upload(pixels)
    if device == "cuda":
        held = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    moments = vae.encode(on_device if name == "whole" else on_device[:1], tiled=name == "tiled")[0].cpu()
    if device == "cuda":
        used = torch.cuda.max_memory_allocated() - before
        step = Step(used, torch.cuda.max_memory_reserved() - held, moments)
        del on_device
        torch.cuda.empty_cache()
        return step
    used = _status_bytes("VmPeak") - before
    return Step(used, used, moments)


def _return_freed_memory() -> None:
    """Let the C library give all large blocks back when they are freed, so that this process's size means something."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MIB)
    libc.mallopt(M_ARENA_MAX, 1)


@contextmanager
def _cap(device: str, cap_bytes: int) -> Iterator[None]:
    """Let allocations of more than ``cap_bytes`` beyond what is in use fail inside the block."""
    if device == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + cap_bytes) / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + cap_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _memory_in_use(device: str) -> int:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # also frees what another stream has used, which torch does late
        return torch.cuda.memory_allocated()
    return _status_bytes("VmSize")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10

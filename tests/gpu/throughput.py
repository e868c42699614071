"""Section ``throughput``: VAEs of full size with random weights in bfloat16, beside the plain loop of their own code.

Both sides take uint8 clips in host memory to float32 moments in host memory. Pairs alternate in one process, and the
medians are shown. The operations are counted once, by ``torch.utils.flop_counter``; the peak is the fastest of some large
products of matrices in the same process. If memory runs out, the product's steps are taken: fewer clips, then tiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stvae.memory import is_out_of_memory, release_memory
from stvae.vae import VAE, compile_encoders
from tests.gpu import tiny
from tests.gpu.full_size import FULL_SIZE, SMALL, build
from tests.gpu.report import Report

MAX_PAIRS = {"cuda": 3, "cpu": 1}
SPARE_S = 2.0
"""Seconds of a part's budget that stay unused."""
PRODUCT_SIDE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the matrices whose products give the peak."""
PRODUCTS = {"cuda": 20, "cpu": 2}
GIB = 1 << 30


@dataclass(kw_only=True)
class Side:
    """One way to encode the same clips."""

    encode: Callable[[], object]
    note: str = ""
    """How it differs from one call for all clips."""
    peak_bytes: int = 0
    """Largest amount of GPU memory in use during its first call."""
    times_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median of the measured times."""
        return statistics.median(self.times_s)


def run(report: Report, name: str) -> None:
    """Add rows for one model, first without ``--compile`` and then with it."""
    model = (FULL_SIZE if report.on_gpu else SMALL)[name]
    frames, height, width = model.size
    subject = f"{name} {height}x{width}x{frames}, bfloat16, {model.micro_batch} at once"
    vae, plain_loop = build(model, report.device, "bfloat16")
    pixels = tiny.random_clips(model.size, model.micro_batch)
    ours = _first_fitting(report.device, vae, pixels)
    if ours is None:
        report.measured(subject, "not even tiles fit the memory")
        return
    plain = _fitting(report.device, partial(plain_loop, pixels))
    _measure(report, subject, pixels, ours, plain)
    _report_share(report, name, ours)
    if not report.on_gpu:
        report.not_run(f"{name}, --compile", "takes minutes and a C++ compiler on a CPU")
        return
    started_s = time.monotonic()
    compile_encoders(vae.model)
    compiled = _fitting(report.device, ours.encode, ours.note)
    if compiled is None:
        report.measured(f"{subject}, --compile", "does not fit the memory")
        return
    report.measured(f"{name}, time until it is compiled", f"{time.monotonic() - started_s:.0f} s")
    _measure(report, f"{subject}, --compile", pixels, compiled, plain)


def _measure(report: Report, subject: str, pixels: Tensor, ours: Side, plain: Side | None) -> None:
    """Time our side and the plain loop in turns, and add rows for speed and memory."""
    sides = [ours] if plain is None else [ours, plain]
    for side in sides:
        side.times_s.clear()
    _measure_pairs(report, sides)
    _report_speed(report, subject, len(pixels), pixels.shape[2], ours, plain)
    if report.on_gpu:
        theirs = "" if plain is None else f", plain loop {plain.peak_bytes / GIB:.1f} GiB"
        report.measured(f"{subject}, peak memory", f"{ours.peak_bytes / GIB:.1f} GiB{theirs}")


def _report_speed(report: Report, subject: str, clips: int, frames: int, ours: Side, plain: Side | None) -> None:
    clips_per_s = clips / ours.median_s
    ratio = "the plain loop does not fit the memory"
    if plain is not None:
        ratio = f"{plain.median_s / ours.median_s:.2f} x plain loop, {len(ours.times_s)} pairs"
    report.measured(subject, f"{clips_per_s:.3g} clips/s, {clips_per_s * frames:.0f} frames/s{ours.note}, {ratio}")


def _first_fitting(device: str, vae: VAE, pixels: Tensor) -> Side | None:
    """Our side, in the first step of the product's ladder that fits the memory; None if none does."""
    ways: list[tuple[str, int, bool]] = [("", len(pixels), False)]
    ways += [(", one clip at a time", 1, False)] if len(pixels) > 1 else []
    ways += [(", in tiles", 1, True)] if vae.can_tile else []
    for note, size, tiled in ways:

        def encode(size: int = size, tiled: bool = tiled) -> Tensor:
            return torch.cat([vae.encode(call, tiled=tiled).cpu() for call in pixels.split(size)])

        side = _fitting(device, encode, note)
        if side is not None:
            return side
    return None


def _fitting(device: str, encode: Callable[[], object], note: str = "") -> Side | None:
    """Call a side for the first time, which also compiles and chooses algorithms. None if the memory runs out."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        encode()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return Side(encode=encode, note=note, peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else 0)
    release_memory()
    return None


def _measure_pairs(report: Report, sides: list[Side]) -> None:
    """Time all sides in turns, until there are enough pairs or the budget is nearly spent."""
    longest_s = 0.0
    for number in range(MAX_PAIRS[report.device]):
        if number and report.left_s() < longest_s + SPARE_S:
            break
        pair_s = [_seconds(side.encode) for side in sides]
        longest_s = max(longest_s, sum(pair_s))
        for side, seconds in zip(sides, pair_s, strict=True):
            side.times_s.append(seconds)


def _report_share(report: Report, name: str, ours: Side) -> None:
    """Add a row for the operations per second as a share of the peak."""
    with FlopCounterMode(display=False) as counter:
        ours.encode()
    flops = counter.get_total_flops()
    speed, peak = flops / ours.median_s, peak_flops(report.device)
    shown = f"{speed / peak:.2f} ({speed / 1e12:.3g} of {peak / 1e12:.3g} TFLOP/s, {flops / 1e12:.3g} TFLOP)"
    report.measured(f"{name}, share of the bfloat16 peak", shown)


def peak_flops(device: str) -> float:
    """Operations per second of the fastest of some products of large bfloat16 matrices."""
    side = PRODUCT_SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: _product(a, b)) for _ in range(PRODUCTS[device]))


def _product(a: Tensor, b: Tensor) -> None:
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize()


def _seconds(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s

"""Section ``loader``: committed latents onto the device through ``LatentDataset``, beside a plain copy from pinned memory.

The set lies on a local disk, in the operating system's cache. The plain copy moves batches of the same size from one pinned
buffer, and does nothing else.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.bucket import Bucket
from pipeline.loader import Batches, LatentDataset
from tests.gpu.report import Report
from tests.support.latent_set import write_latents

BATCH_SIZE = 8
ROUNDS = {"cuda": 5, "cpu": 1}


def run(report: Report) -> None:
    """Check that a batch on the device has the values of one on the CPU, then add a row for each way to read the set."""
    bucket, count = (Bucket(51, 480, 848), 256) if report.on_gpu else (Bucket(17, 64, 64), 32)
    with tempfile.TemporaryDirectory() as name:
        data = LatentDataset(
            str(write_latents(Path(name) / "set", [bucket] * count, samples_per_shard=64, store="mean"))
        )
        (shape,) = {tuple(latent.shape) for latent in data.read(torch.arange(1).numpy())}
        first, on_cpu = (
            next(iter(data.batches(BATCH_SIZE, device=device, loop="once")))["latents"]
            for device in (report.device, "cpu")
        )
        difference = float((first.cpu() - on_cpu).abs().max())
        report.check("a batch on the device against the CPU", difference <= 1e-5, f"differs by {difference:.1e}")
        batch_bytes = 2 * BATCH_SIZE * torch.Size(shape).numel()
        options = {"device": report.device, "dtype": torch.bfloat16}
        plain = "plain copies from pinned memory" if report.on_gpu else "plain copies"
        ways = {
            plain: _plain_copies(report, batch_bytes, count // BATCH_SIZE),
            "loader, bfloat16 and normalized": _epoch(report, data.batches(BATCH_SIZE, **options)),
            "loader, mapped": _epoch(report, data.batches(BATCH_SIZE, mapped=True, **options)),
        }
        times_s = {name: _median_seconds(way, ROUNDS[report.device]) for name, way in ways.items()}
    plain_s = times_s[plain]
    for name, seconds in times_s.items():
        speed = f"{batch_bytes * (count // BATCH_SIZE) / seconds / 1e9:.2f} GB/s, {count / seconds:.0f} samples/s"
        report.measured(name, f"{speed}, {plain_s / seconds:.2f} of the plain copies")


def _plain_copies(report: Report, batch_bytes: int, steps: int) -> Callable[[], None]:
    host = torch.zeros(batch_bytes, dtype=torch.uint8, pin_memory=report.on_gpu)
    device = torch.empty_like(host, device=report.device)

    def copy() -> None:
        for _ in range(steps):
            device.copy_(host, non_blocking=True)
        _wait(report)

    return copy


def _epoch(report: Report, batches: Batches) -> Callable[[], None]:
    def read() -> None:
        for batch in batches:
            assert len(batch["latents"]) == BATCH_SIZE
        _wait(report)

    return read


def _median_seconds(way: Callable[[], None], rounds: int) -> float:
    times_s = []
    for _ in range(rounds + 1):
        started_s = time.perf_counter()
        way()
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s[1:])


def _wait(report: Report) -> None:
    if report.on_gpu:
        torch.cuda.synchronize()

"""Section ``same-bytes``: a clip's moments twice, in two processes, and beside other clips, equal to the last bit.

The product always gives the VAE a whole micro-batch, whose free rows are black. So a clip alone is a micro-batch with
black rows. A micro-batch of another size may use other kernels: its largest difference is a value, not a check.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stvae import load_vae
from tests.gpu import tiny
from tests.gpu.processes import call_in_new_process
from tests.gpu.report import Report

MICRO_BATCH = 3
QUICK = (tiny.OPEN_SORA, "AutoencoderKLWan", "AutoencoderKLLTXVideo")
"""Tiny VAEs for a CPU."""


@dataclass(frozen=True)
class Bytes:
    """Hashes of one clip's moments from one process."""

    first: str
    again: str
    beside: str
    """Beside other clips in the micro-batch."""
    alone_difference: float
    """Largest difference to the moments from a micro-batch of one clip."""


def run(report: Report) -> None:
    """Add a row for each precision and each of the three questions."""
    names = tiny.NAMES if report.on_gpu else QUICK
    for dtype in ("float32", "bfloat16") if report.on_gpu else ("float32",):
        with tempfile.TemporaryDirectory() as folder:
            ended = [
                call_in_new_process(
                    report.device, hash_moments, names, folder, report.device, dtype, timeout_s=report.left_s()
                )
                for _ in range(2)
            ]
        errors = [process.error or f"exit code {process.exit_code}" for process in ended if process.value is None]
        if errors:
            report.check(dtype, False, errors[0])
            continue
        one, other = (process.value for process in ended)
        for subject, different in (
            ("twice in a process", [name for name, found in one.items() if found.first != found.again]),
            ("in two processes", [name for name, found in one.items() if found.first != other[name].first]),
            ("beside other clips", [name for name, found in one.items() if found.first != found.beside]),
        ):
            shown = f"other bytes: {', '.join(different)}" if different else f"equal, {len(one)} VAEs"
            report.check(f"{subject}, {dtype}", not different, shown)
        name = max(one, key=lambda name: one[name].alone_difference)
        report.measured(
            f"a micro-batch of 1 against one of {MICRO_BATCH}, {dtype}",
            f"differs by at most {one[name].alone_difference:.1e} ({name})",
        )


def hash_moments(names: Sequence[str], parent: str, device: str, dtype: str) -> dict[str, Bytes]:
    """Encode one clip with tiny VAEs in several ways. A VAE that this device cannot compute is left out."""
    found = {}
    for name in names:
        vae = load_vae(tiny.folder_of(name, Path(parent)), device=device, dtype=dtype, only="encoder")
        size = tiny.small_size(vae.card.geometry)
        clip, others = tiny.random_clips(size), tiny.random_clips(size, MICRO_BATCH - 1, seed=1)
        try:
            padded = torch.cat([clip, torch.zeros_like(others)])
            first = vae.encode(padded)[0]
            found[name] = Bytes(
                first=_hash(first),
                again=_hash(vae.encode(padded)[0]),
                beside=_hash(vae.encode(torch.cat([clip, others]))[0]),
                alone_difference=float((vae.encode(clip)[0] - first).abs().max()),
            )
        except NotImplementedError:  # torch lacks an operation of the model on this device
            continue
    return found


def _hash(moments: Tensor) -> str:
    return hashlib.sha256(moments.cpu().numpy().tobytes()).hexdigest()

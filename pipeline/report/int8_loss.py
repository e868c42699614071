"""The cost of int8 in decoded clips: their PSNR beside that of the same latents in float16."""

from __future__ import annotations

import math
from collections.abc import Iterable

MAX_LOSS_DB = 0.5
"""Mean loss of PSNR above which int8 is warned of."""

PSNRs = tuple[float, float | None]
"""PSNR in dB of a clip decoded from int8, and from float16; None where that is not known."""


def mean_loss_db(psnrs: Iterable[PSNRs]) -> float | None:
    """Return by how much the PSNR of int8 is below that of float16 in the mean of some clips; None without any clip."""
    losses = [0.0 if int8 == float16 else float16 - int8 for int8, float16 in psnrs if float16 is not None]
    return sum(losses) / len(losses) if losses else None


def describe_psnr(int8: float, float16: float | None) -> str:
    """Return the PSNR of a decoded clip for people, with that of float16 where it is known."""
    if float16 is None:
        return "identical" if math.isinf(int8) else f"{int8:.1f} dB"
    return f"{int8:.2f} dB (float16 {float16:.2f} dB)"


def describe_loss(loss_db: float) -> str:
    """Return the loss for people, with a warning and what to do if it is too large."""
    text = f"decoded clips lose {max(loss_db, 0.0):.2f} dB to int8, compared with float16"
    if loss_db <= MAX_LOSS_DB:
        return text
    return f"{text}; more than {MAX_LOSS_DB} dB is too much: encode with --dtype float16"

"""Section ``exactness``: every VAE in float32 on the device against the CPU, and in bfloat16 within a bound.

float32: the largest difference is at most 1e-4, and the switches for TF32 are off while the VAE computes. Random weights
can make a VAE that magnifies rounding (Mochi here). The bound is then twice what rounding its pixels alone can change.

bfloat16: the error (root mean square of the difference to float32 on the CPU) is at most twice the error that the CPU
itself makes in bfloat16. Both errors come from rounding to 8 bits after each layer, so they are about equal where the
device computes what the CPU does, whatever the size of the model's values. Twice leaves room for another order of additions
and for rounding at other places.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stvae import load_vae
from stvae.classes.pixels import to_model_range
from stvae.vae import VAE
from tests.gpu import tiny
from tests.gpu.full_size import FULL_SIZE, SMALL, build
from tests.gpu.report import Report
from tests.support.golden import GOLDEN, TINY

EXACT = 1e-4
ROUNDING_FACTOR = 2.0
"""Factor between what rounding the pixels to float32 can change and the difference that is allowed."""
ROUNDINGS = 3
"""Number of times that pixels are rounded at random to measure this."""
BFLOAT16_FACTOR = 2.0
MIN_BFLOAT16_ERROR = 1e-3
"""Error in bfloat16 that is never too large, for models whose error on the CPU happens to be tiny."""
BOUND_WITHOUT_CPU = 0.05
"""Error in bfloat16, in standard deviations of the moments, that is allowed where the CPU cannot compute the model in it."""
EXPECTED_NUMERICS = {
    "TF32 products": "off",
    "TF32 convolutions": "off",
    "deterministic cuDNN": "on",
    "autotuning": "off",
}
"""The switches inside ``encode``."""
GOLDEN_LENGTHS = (1, 2, 4, 5, 16, 17, 18, 34, 40)


def run(report: Report) -> None:
    """Add a row for the numerics, one for the golden outputs, and one for every VAE and precision."""
    with tempfile.TemporaryDirectory() as folder:
        _check_golden(report)
        for name in tiny.NAMES:
            _check_vae(report, name, tiny.folder_of(name, Path(folder)))
    _check_wide(report)


def _check_golden(report: Report) -> None:
    """Compare with the outputs of Open-Sora's own code: moments, normalized latents and decoded pixels."""
    vae = load_vae(TINY, device=report.device)
    inside = watch_numerics(vae)
    outside = numerics()
    cases = load_file(GOLDEN / "opensora-v12-tiny-cases.safetensors")
    moments_error = latents_error = gray_levels = 0.0
    for length in GOLDEN_LENGTHS:
        moments = vae.encode(cases[f"T{length}.pixels_u8"])
        latents = vae.normalize(moments.chunk(2, dim=1)[0])
        decoded = vae.decode(vae.denormalize(cases[f"T{length}.latents"].to(report.device)), length)
        expected = cases[f"T{length}.reconstruction"].add(1).mul(127.5).round().clamp(0, 255)
        moments_error = max(moments_error, _largest(moments, cases[f"T{length}.moments"]))
        latents_error = max(latents_error, _largest(latents, cases[f"T{length}.latents"]))
        gray_levels = max(gray_levels, _largest(decoded, expected))
    report.measured("numerics outside of encode", _listed(outside))
    report.check("numerics inside encode, float32", inside[0] == EXPECTED_NUMERICS, _listed(inside[0]))
    after = numerics()
    report.check("numerics after encode and decode", after == outside, _listed(after))
    subject = f"golden Open-Sora, {len(GOLDEN_LENGTHS)} lengths, float32"
    shown = f"moments {moments_error:.1e}, latents {latents_error:.1e}, bound {EXACT:.0e}"
    report.check(subject, max(moments_error, latents_error) <= EXACT, shown)
    report.check(f"{subject}, decoded", gray_levels <= 1, f"{gray_levels:.0f} gray levels")


def _check_vae(report: Report, name: str, folder: Path) -> None:
    on_cpu = load_vae(folder, only="encoder")
    size = tiny.small_size(on_cpu.card.geometry)
    pixels = tiny.random_clips(size, count=2 if report.on_gpu else 1)
    expected = on_cpu.encode(pixels)
    moments = load_vae(folder, device=report.device, only="encoder").encode(pixels)
    error, bound = _largest(moments, expected), EXACT
    if error > bound:
        bound = max(bound, ROUNDING_FACTOR * _change_by_rounding(folder, pixels))
    report.check(f"{name} {_shown(size)} float32", error <= bound, f"{error:.1e}, bound {bound:.1e}")
    _check_bfloat16(report, f"{name} {_shown(size)} bfloat16", folder, pixels, expected)


def _change_by_rounding(folder: Path, pixels: Tensor) -> float:
    """Largest change of the moments, in float64, when each pixel changes by about half a unit in float32's last place."""
    vae = load_vae(folder, dtype="float64", only="encoder")
    x_BCTHW = to_model_range(pixels, vae.model.convention.pixels).double()  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        expected = vae.model.encode(x_BCTHW)
        noises = [torch.randn(x_BCTHW.shape, generator=generator, dtype=torch.float64) for _ in range(ROUNDINGS)]
        changed = [vae.model.encode(x_BCTHW * (1 + 2**-24 * noise)) for noise in noises]
    return max(float((moments - expected).abs().max()) for moments in changed)


def _check_bfloat16(report: Report, subject: str, folder: Path, pixels: Tensor, expected: Tensor) -> None:
    def error_on(device: str) -> float:
        moments = load_vae(folder, device=device, dtype="bfloat16", only="encoder").encode(pixels)
        return _root_mean_square(moments.cpu() - expected)

    try:
        cpu_error = error_on("cpu")
        bound = max(BFLOAT16_FACTOR * cpu_error, MIN_BFLOAT16_ERROR)
    except NotImplementedError as missing:  # torch lacks an operation of the model
        if not report.on_gpu:
            report.not_run(subject, str(missing))
            return
        bound = BOUND_WITHOUT_CPU * float(expected.std())
    error = error_on(report.device) if report.on_gpu else cpu_error
    report.check(subject, error <= bound, f"{error:.1e}, bound {bound:.1e}")


def _check_wide(report: Report) -> None:
    """Compare a VAE with as many channels as a published one, whose convolutions can use what tiny ones cannot."""
    model = replace((FULL_SIZE if report.on_gpu else SMALL)["Wan 2.1"], size=(5, 64, 64))
    vae, _ = build(model, "cpu", "float32")
    pixels = tiny.random_clips(model.size)
    expected = vae.encode(pixels)
    moved = VAE(vae.card, vae.model.to(report.device))
    error = _largest(moved.encode(pixels), expected)
    report.check(f"Wan 2.1, full width {_shown(model.size)} float32", error <= EXACT, f"{error:.1e}, bound {EXACT:.0e}")
    with torch.inference_mode():
        pixels_BCTHW = moved.upload(pixels).float() / 127.5 - 1
        error = _largest(moved.model.encode(pixels_BCTHW), expected)
    report.measured("the same with the numerics outside of encode", f"{error:.1e}")


def watch_numerics(vae: VAE) -> list[dict[str, str]]:
    """Return a list that gets the numerics at every call of the VAE's first convolution."""
    seen: list[dict[str, str]] = []
    convolutions = (torch.nn.Conv2d, torch.nn.Conv3d)
    first = next(module for module in vae.model.modules() if isinstance(module, convolutions))
    first.register_forward_pre_hook(lambda *_: seen.append(numerics()))
    return seen


def numerics() -> dict[str, str]:
    """The switches of this process that change the last bits of results."""
    switches: dict[str, Callable[[], object]] = {
        "TF32 products": lambda: torch.backends.cuda.matmul.allow_tf32,
        "TF32 convolutions": lambda: torch.backends.cudnn.allow_tf32,
        "deterministic cuDNN": lambda: torch.backends.cudnn.deterministic,
        "autotuning": lambda: torch.backends.cudnn.benchmark,
    }
    return {name: _state(read) for name, read in switches.items()}


def _listed(switches: dict[str, str]) -> str:
    return ", ".join(f"{name} {state}" for name, state in switches.items())


def _state(read: Callable[[], object]) -> str:
    try:
        return "on" if read() else "off"
    except RuntimeError:  # torch refuses to read an old switch after a new one was used for the same thing
        return "unknown"


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a.cpu().float() - b.cpu().float()).abs().max())


def _root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _shown(size: tuple[int, int, int]) -> str:
    return "{1}x{2}x{0}".format(*size)

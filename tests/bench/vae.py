"""How fast Open-Sora's encoder is through ``vae.encode``, beside the reference's loop: ``python -m tests.bench.vae``.

Full-size model, random weights. Both sides take uint8 pixels to moments; the reference encodes four frames and one chunk
at a time in the contiguous layout. Pairs alternate in one process, so only the ratios mean something. ``share of peak``
is of the fastest matrix product or convolution that was measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stvae import read_card
from stvae.model import SpatioTemporalVAE
from stvae.spatial import SCALING_FACTOR
from stvae.vae import VAE, arrange_convolutions, build_open_sora
from tests.support.golden import TINY

PUBLISHED = {
    "vae_2d": {"type": "VideoAutoencoderKL"},
    "vae_temporal": {"type": "VAE_Temporal_SD"},
    "micro_frame_size": 17,
}


def reference(model: SpatioTemporalVAE, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Moments as the reference's loop computes them, the spatial posterior at its mode."""
    x = (pixels.float() / 127.5 - 1).to(dtype)
    frames = x.transpose(1, 2).flatten(0, 1)
    latents = [model.spatial_vae.module.encode(part).latent_dist.mean * SCALING_FACTOR for part in frames.split(4)]
    z = torch.cat(latents).unflatten(0, (len(pixels), -1)).transpose(1, 2)
    return torch.cat([model.temporal_vae.encode(chunk) for chunk in z.split(17, dim=2)], dim=2).float()


def sides(dtype: torch.dtype) -> tuple[VAE, SpatioTemporalVAE]:
    """Ours and the reference's model with equal weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build_open_sora(PUBLISHED)
    model.spatial_vae.module.decoder = model.temporal_vae.decoder = None
    model = model.to_empty(device="cpu").to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    plain = copy.deepcopy(model)
    arrange_convolutions(model)
    return VAE(read_card(str(TINY)), model), plain


def seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def peak_flops(dtype: torch.dtype) -> float:
    """What this machine can: the best of a large matrix product and a large convolution, eight times each."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    x, weight = (torch.randn(shape).to(dtype) for shape in ((4, 256, 64, 64), (256, 256, 3, 3)))
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    product = 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(8))
    convolution = (
        2
        * weight.numel()
        * 4
        * 64
        * 64
        / min(seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1)) for _ in range(8))
    )
    return max(product, convolution)


def peak_memory_gib(side: str, dtype: str, shape: list[int]) -> float:
    """Of a process that encodes once with one side."""
    command = [sys.executable, "-m", "tests.bench.vae", "--memory-of", side, "--dtypes", dtype]
    done = subprocess.run([*command, "--shape", *map(str, shape)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@torch.inference_mode()
def main() -> None:
    """Print medians and spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--shape", nargs=4, type=int, default=[1, 34, 64, 64], metavar=("B", "T", "H", "W"))
    parser.add_argument("--memory-of", choices=["ours", "reference"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, *size = arguments.shape
    # frames as decoders give them: channels last
    pixels = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    if arguments.memory_of:
        vae, plain = sides(getattr(torch, arguments.dtypes[0]))
        Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
        before = _status_kib("VmRSS")
        _ = vae.encode(pixels) if arguments.memory_of == "ours" else reference(plain, pixels, vae.dtype)
        print((_status_kib("VmHWM") - before) / 2**20)
        return
    print(f"{batch} clip(s) of {size[0]} frames at {size[1]}x{size[2]}, {torch.get_num_threads()} threads")
    medians = {}
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        vae, plain = sides(dtype)
        with FlopCounterMode(display=False) as counter:
            ours, theirs = vae.encode(pixels), reference(plain, pixels, dtype)
        difference = float((ours - theirs).abs().max() / theirs.std())
        our_side, their_side = partial(vae.encode, pixels), partial(reference, plain, pixels, dtype)
        peak = peak_flops(dtype)
        pairs = [(seconds(our_side), seconds(their_side)) for _ in range(arguments.pairs)]
        ratios = sorted(a / b for a, b in pairs)
        medians[name] = statistics.median(a for a, _ in pairs)
        share = counter.get_total_flops() / 2 / medians[name] / max(peak, peak_flops(dtype))
        memory = {side: peak_memory_gib(side, name, arguments.shape) for side in ("ours", "reference")}
        print(
            f"{name:9s} ours/reference {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f}, "
            f"{len(ratios)} pairs)  {medians[name]:.2f} s  share of peak {share:.2f}  "
            f"memory +{memory['ours']:.2f} GiB, reference +{memory['reference']:.2f} GiB  differ by {difference:.1e} sd"
        )
    if len(medians) == 2:
        first, second = medians
        print(f"{second}/{first} {medians[second] / medians[first]:.3f}")


if __name__ == "__main__":
    main()

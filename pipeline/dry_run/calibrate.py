"""Measures the speed of a VAE on a device, and finds the micro-batch that is fastest."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.bucket import Bucket
from pipeline.environment import gpu_model
from pipeline.executor.ray_cluster import call_on_gpu_node
from pipeline.executor.resources.automatic import resolve_resources
from pipeline.output.members import check_members, members_of
from pipeline.recipe import Recipe, Run
from pipeline.storage.checkpoint import local_checkpoint
from stvae import Card, load_vae
from stvae.memory import is_out_of_memory, release_memory

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Sizes of micro-batches to try."""
REPEATS = 3
MIN_SPEEDUP = 1.05
"""A larger micro-batch must be this many times as fast to be proposed, and for larger ones to be tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Measurement of one size of micro-batch."""

    clips_per_s: float
    peak_bytes: int | None
    """Peak use of GPU memory; None on a CPU."""


def calibrate(recipe: Recipe, run: Run, card: Card, say: Callable[[str], None]) -> str:
    """Try micro-batches for every bucket on the device of the encoders; returns the ``--micro-batch`` flag to use.

    Writes nothing. Raises ConfigError for buckets that the VAE cannot encode.
    """
    recipe.check_vae(card)
    check_members(recipe, card)
    run = resolve_resources(run, None, say, start_ray=False)
    dtype = run.auto_compute_dtype if recipe.compute_dtype == "auto" else recipe.compute_dtype
    best: list[int] = []
    for bucket in recipe.buckets:
        trials = _try_on_encoder_device(run, say, bucket, dtype, recipe.compile, SIZES)
        for size, trial in trials.items():
            memory = "" if trial.peak_bytes is None else f", peak {trial.peak_bytes / 2**30:.1f} GiB"
            say(f"{bucket}: {size:2d} clips at once  {trial.clips_per_s:8.2f} clips/s{memory}")
        best.append(choose_size(trials) if trials else 1)
        if not trials:
            say(f"{bucket}: not even one clip fits in memory beside the VAE")
    flag = f"--micro-batch {','.join(map(str, best))}"
    say(f"propose: {flag}  ({dtype}, {card.class_name})")
    return flag


def measure_speed(
    recipe: Recipe, run: Run, buckets: Sequence[Bucket], say: Callable[[str], None]
) -> dict[Bucket, float | None]:
    """Measure the clips per second of the recipe's micro-batches in some of its buckets, on the device of the encoders.

    The time of every member of a sample is included. None for a bucket with a member that does not fit in memory.
    ``recipe.compute_dtype`` must not be ``auto``.
    """
    speeds: dict[Bucket, float | None] = {}
    for bucket in buckets:
        size = recipe.clips_per_call[bucket]
        shapes = Counter(member.bucket(bucket) for member in members_of(recipe))
        trials = {
            shape: _try_on_encoder_device(run, say, shape, recipe.compute_dtype, recipe.compile, (size,)).get(size)
            for shape in shapes
        }
        times_s = [shapes[shape] / trial.clips_per_s for shape, trial in trials.items() if trial]
        speeds[bucket] = speed = 1 / sum(times_s) if len(times_s) == len(trials) else None
        say(f"{bucket}: {size} at once  " + ("do not fit in memory" if speed is None else f"{speed:.2f} clips/s"))
    return speeds


def _try_on_encoder_device(
    run: Run, say: Callable[[str], None], bucket: Bucket, dtype: str, compiled: bool, sizes: Sequence[int]
) -> dict[int, Trial]:
    """Run ``try_sizes`` in this process, or on Ray if the encoders would be there with a GPU."""
    if run.local or not run.encoder_gpus:
        return try_sizes(run, bucket, dtype, compiled, sizes)
    return call_on_gpu_node(run, say, try_sizes, run, bucket, dtype, compiled, sizes)


def try_sizes(run: Run, bucket: Bucket, dtype: str, compiled: bool, sizes: Sequence[int] = SIZES) -> dict[int, Trial]:
    """Measure growing micro-batches of random pixels, until one does not fit in memory or is not faster.

    Returns the measurements by size; empty if not even the first size fits.
    """
    import torch

    if run.encoder_gpus:
        gpu_model()  # says in one sentence if there is none
    else:
        torch.set_num_threads(run.encoder_cpus)
    device = "cuda" if run.encoder_gpus else "cpu"
    checkpoint = local_checkpoint(run.vae)
    options = {
        "device": device,
        "dtype": dtype,
        "compiled": compiled,
        "autotune": run.autotune,
        "unlisted": run.unlisted_vae,
    }
    vae = load_vae(checkpoint, only="encoder", **options)
    trials: dict[int, Trial] = {}
    for size in sizes:
        shape = (size, 3, bucket.num_frames, bucket.height, bucket.width)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        try:
            vae.encode(pixels)  # the first call compiles and fills caches
            if run.encoder_gpus:
                torch.cuda.reset_peak_memory_stats()
            times_s = []
            for _ in range(REPEATS):
                started_s = time.monotonic()
                vae.encode(pixels).cpu()
                times_s.append(time.monotonic() - started_s)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            break
        peak_bytes = torch.cuda.max_memory_allocated() if run.encoder_gpus else None
        fastest = max((trial.clips_per_s for trial in trials.values()), default=0.0)
        trials[size] = Trial(clips_per_s=size / statistics.median(times_s), peak_bytes=peak_bytes)
        if trials[size].clips_per_s < fastest * MIN_SPEEDUP:
            break
    return trials


def choose_size(trials: dict[int, Trial]) -> int:
    """Return the smallest size that is about as fast as the fastest."""
    fastest = max(trial.clips_per_s for trial in trials.values())
    return min(size for size, trial in trials.items() if trial.clips_per_s * MIN_SPEEDUP >= fastest)

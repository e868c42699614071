"""Which micro-batch a VAE is fastest with on a device, by trying."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.executor.ray_cluster import connect_to_ray
from pipeline.output.members import check_members, members_of
from pipeline.recipe import Bucket, Recipe, Run
from stvae import Card, load_vae
from stvae.memory import is_out_of_memory, release_memory

SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 3
WORTHWHILE = 1.05
"""A larger micro-batch must be this much faster to be proposed, or to go on trying."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One size of micro-batch, measured."""

    clips_per_s: float
    peak_bytes: int | None
    """Of GPU memory."""


def calibrate(recipe: Recipe, run: Run, card: Card, say: Callable[[str], None]) -> str:
    """Try micro-batches of every bucket where the encoders would be; the ``--micro-batch`` to give.

    Writes nothing. Raises ConfigError for buckets that the VAE cannot encode.
    """
    recipe.check_vae(card)
    check_members(recipe, card)
    dtype = run.auto_compute_dtype if recipe.compute_dtype == "auto" else recipe.compute_dtype
    best: list[int] = []
    for bucket in recipe.buckets:
        trials = _tried(run, bucket, dtype, recipe.compile, SIZES)
        for size, trial in trials.items():
            memory = "" if trial.peak_bytes is None else f", peak {trial.peak_bytes / 2**30:.1f} GiB"
            say(f"{bucket}: {size:2d} clips at once  {trial.clips_per_s:8.2f} clips/s{memory}")
        best.append(proposal(trials) if trials else 1)
        if not trials:
            say(f"{bucket}: not even one clip fits the memory beside the VAE")
    flag = f"--micro-batch {','.join(map(str, best))}"
    say(f"propose: {flag}  ({dtype}, {card.class_name})")
    return flag


def measure_speed(
    recipe: Recipe, run: Run, buckets: Sequence[Bucket], say: Callable[[str], None]
) -> dict[Bucket, float | None]:
    """Clips per second of the recipe's micro-batch in some of its buckets, where the encoders would be.

    ``recipe``: ``compute_dtype`` must not be ``auto``. The time of every member counts. None for a bucket with a member
    that does not fit the memory.
    """
    speeds: dict[Bucket, float | None] = {}
    for bucket in buckets:
        size = recipe.clips_per_call[bucket]
        shapes = Counter(member.bucket(bucket) for member in members_of(recipe))
        trials = {
            shape: _tried(run, shape, recipe.compute_dtype, recipe.compile, (size,)).get(size) for shape in shapes
        }
        times_s = [shapes[shape] / trial.clips_per_s for shape, trial in trials.items() if trial]
        speeds[bucket] = speed = 1 / sum(times_s) if len(times_s) == len(trials) else None
        say(f"{bucket}: {size} at once  " + ("do not fit the memory" if speed is None else f"{speed:.2f} clips/s"))
    return speeds


def _tried(run: Run, bucket: Bucket, dtype: str, compiled: bool, sizes: Sequence[int]) -> dict[int, Trial]:
    """``try_sizes`` where the encoders would be."""
    if run.local or not run.gpus:
        return try_sizes(run, bucket, dtype, compiled, sizes)
    ray = connect_to_ray(run)
    trials: dict[int, Trial] = ray.get(
        ray.remote(num_gpus=run.gpus)(try_sizes).remote(run, bucket, dtype, compiled, sizes)
    )
    return trials


def try_sizes(run: Run, bucket: Bucket, dtype: str, compiled: bool, sizes: Sequence[int] = SIZES) -> dict[int, Trial]:
    """Clips per second for growing micro-batches of random pixels, until memory ends or speed no longer grows."""
    import torch

    if not run.gpus:
        torch.set_num_threads(run.cpus)
    device = "cuda" if run.gpus else "cpu"
    vae = load_vae(run.vae, device=device, dtype=dtype, only="encoder", compiled=compiled)
    trials: dict[int, Trial] = {}
    for size in sizes:
        shape = (size, 3, bucket.num_frames, bucket.height, bucket.width)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        try:
            vae.encode(pixels)  # the first call plans, compiles and warms caches
            if run.gpus:
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
        peak_bytes = torch.cuda.max_memory_allocated() if run.gpus else None
        before = max((trial.clips_per_s for trial in trials.values()), default=0.0)
        trials[size] = Trial(clips_per_s=size / statistics.median(times_s), peak_bytes=peak_bytes)
        if trials[size].clips_per_s < before * WORTHWHILE:
            break
    return trials


def proposal(trials: dict[int, Trial]) -> int:
    """The smallest size about as fast as the fastest."""
    fastest = max(trial.clips_per_s for trial in trials.values())
    return min(size for size, trial in trials.items() if trial.clips_per_s * WORTHWHILE >= fastest)

"""Section ``job``: an encode job in one process, from real video files, and what the device waited for.

The job is ``jobs/encode_dataset.py --local`` with a full-size Wan 2.1 of random weights and 720p H.264, enough clips for
about 20 seconds of a GPU. The VAE alone is timed before. On a CPU the VAE and the clips are tiny.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from jobs.encode_dataset import main
from pipeline.encode.micro_batches import MicroBatchEncoder
from pipeline.progress.activities import activity_label
from pipeline.setting import available_cpus
from stvae import load_vae
from stvae.autoencoder import build_untrained
from tests.gpu import tiny
from tests.gpu.full_size import FULL_SIZE
from tests.gpu.report import Report
from tests.support.clips_maker import make_clip, numbered_frame
from tests.support.golden import TINY

GPU_S = 20.0
"""Seconds that the VAE should be busy on a GPU."""
CLIPS_PER_VIDEO = 2
DISTINCT_VIDEOS = 2
"""Videos that are made; the others are copies, since making them takes longer than decoding."""
PICTURES = 24
"""Pictures that are drawn; longer videos repeat them."""
MAX_CPUS = 16


def run(report: Report) -> None:
    """Add rows for the job's speed beside that of the VAE alone, the busy share, and the causes of idle time."""
    model = FULL_SIZE["Wan 2.1"]
    frames, height, width = size = model.size if report.on_gpu else (17, 32, 56)
    video_size = (720, 1280) if report.on_gpu else (64, 112)
    dtype = "bfloat16" if report.on_gpu else "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = _save_random(model.full_config, folder / "vae") if report.on_gpu else TINY
        alone_s = _seconds_per_clip(checkpoint, report.device, dtype, size)
        num_clips = max(8, min(64, round(GPU_S / alone_s))) if report.on_gpu else 6
        videos = _make_videos(folder / "videos", num_clips // CLIPS_PER_VIDEO, frames, video_size)
        calls: list[tuple[float, float]] = []
        flags = ["--gpus", "1"] if report.on_gpu else ["--gpus", "0"]
        started_s = time.monotonic()
        _encode(
            [
                *("--local", "--source", str(videos), "--output", str(folder / "out"), "--vae", str(checkpoint)),
                *("--buckets", f"{height}x{width}x{frames}", "--windows", "all", "--unit-clips", "4"),
                *("--cpus", str(min(available_cpus(), MAX_CPUS)), "--compute-dtype", dtype, *flags),
            ],
            calls,
        )
        wall_s = time.monotonic() - started_s
        summary = json.loads((folder / "out" / "summary.json").read_text())
    _report(report, calls, wall_s, alone_s, summary)


def _report(
    report: Report, calls: list[tuple[float, float]], wall_s: float, alone_s: float, summary: dict[str, Any]
) -> None:
    num_clips, span_s = len(calls), calls[-1][1] - calls[0][0]
    speed = num_clips / span_s
    shown = f"{speed:.3g}, VAE alone {1 / alone_s:.3g}, ratio {speed * alone_s:.2f}"
    report.measured("clips/s from the first to the last clip in the VAE", shown)
    report.measured("the whole job", f"{num_clips} clips in {wall_s:.0f} s")
    busy = sum(end - begin for begin, end in calls) / span_s
    report.measured("busy share from the first to the last clip", f"{busy:.3f}")
    idle_s = sorted(summary["idle_s"].items(), key=lambda pair: -pair[1])
    causes = ", ".join(f"{activity_label(cause)} {seconds:.1f} s" for cause, seconds in idle_s if seconds >= 0.05)
    share = 1 - sum(summary["idle_s"].values()) / summary["encoder_s"]
    report.measured("busy share since the encoder was ready", f"{share:.3f}; idle: {causes or 'never'}")


def _encode(arguments: list[str], calls: list[tuple[float, float]]) -> None:
    """Run the job, and note begin and end of every call of the VAE. RuntimeError if it fails."""
    encode: Callable[..., Any] = MicroBatchEncoder._encode

    def noted(*of_encode: Any) -> Any:
        begin_s = time.monotonic()
        try:
            return encode(*of_encode)
        finally:
            calls.append((begin_s, time.monotonic()))

    output = io.StringIO()
    with mock.patch.object(MicroBatchEncoder, "_encode", noted), contextlib.redirect_stdout(output):
        code = main(arguments)
    if code:
        print(output.getvalue())
        raise RuntimeError(f"the job ended with exit code {code}")


def _save_random(config: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(0)
    build_untrained(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _seconds_per_clip(checkpoint: Path, device: str, dtype: str, size: tuple[int, int, int]) -> float:
    """The fastest of three calls of the VAE with one clip, after a first one."""
    vae = load_vae(checkpoint, device=device, dtype=dtype, only="encoder")
    pixels, times_s = tiny.random_clips(size), []
    for _ in range(4):
        started_s = time.perf_counter()
        vae.encode(pixels).cpu()
        times_s.append(time.perf_counter() - started_s)
    del vae
    if device == "cuda":
        torch.cuda.empty_cache()
    return min(times_s[1:])


def _make_videos(folder: Path, count: int, frames: int, size: tuple[int, int]) -> Path:
    """Write videos of H.264 whose frames are enough for two clips."""
    for seed in range(min(count, DISTINCT_VIDEOS)):
        pictures = [numbered_frame(number, *size, seed=seed) for number in range(PICTURES)]
        repeated = [pictures[number % PICTURES] for number in range(CLIPS_PER_VIDEO * frames)]
        make_clip(folder / f"{seed:03d}.mp4", size=size, options={"preset": "ultrafast", "crf": "20"}, frames=repeated)
    for number in range(DISTINCT_VIDEOS, count):
        shutil.copy(folder / f"{number % DISTINCT_VIDEOS:03d}.mp4", folder / f"{number:03d}.mp4")
    return folder

"""Measures how fast videos become frames of a bucket, beside other decoders: ``python -m tests.bench.decode``.

The sources are made in the run: moving textures in 720p and 1080p, as H.264, HEVC, VP9 and AV1. Each contestant decodes the
first frames of a source into the bucket, on one core and in a process of its own; rounds alternate between them. Frames/s
per core are frames per second of processor time, so a busy machine changes them less than the wall time beside them. The
ratio is Latentmill's speed over the contestant's in the same round. Pixels are compared with Latentmill's. What is not
installed is named as left out. ``--environment FOLDER`` makes an environment there and installs torchcodec in it, which
needs the libraries of an FFmpeg of the system.

At the end come the CPUs that one GPU needs for decoding: frames/s of the encoder on the GPU over frames/s per core.
``--gpu-frames-s wan2.1=120`` gives the frames/s of a VAE, from ``python -m tests.gpu``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.bucket import Bucket
from pipeline.environment import cpu_model
from tests.bench.decoding_contestants import CONTESTANTS
from tests.bench.decoding_sources import ENCODINGS, FPS, make_sources
from tests.bench.readers import environment_python
from tests.support.paths import ROOT

TORCHCODEC = "torchcodec==0.13.0"
"""The newest version whose wheel on the package index needs no CUDA."""
HEIGHTS = {720: (720, 1280), 1080: (1080, 1920)}
OURS = next(iter(CONTESTANTS))
EXAMPLES = {"Open-Sora 1.2": 120.0, "Wan 2.1": 124.0, "LTX-Video": 1309.0, "Hunyuan 1.5": 64.0}
"""Frames/s of encoders on an H200 with ``--compile``, from the table of ``stvae/README.md``. Shown if none are given."""


class Measured(NamedTuple):
    """Frames/s of one contestant in one round."""

    per_core: float
    wall: float


class Contestant:
    """The process of one contestant."""

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        command = [str(python), "-m", "tests.bench.decoding_contestants", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.reason: str | None = self._reply().get("error")
        """Why the contestant is left out; None if it takes part."""

    def decode(self, source: Path, size: tuple[int, int], bucket: Bucket, save: Path | None = None) -> dict[str, Any]:
        """Decode the source once."""
        assert self._process.stdin is not None
        request = {"path": str(source), "height": size[0], "width": size[1], "bucket": str(bucket)}
        self._process.stdin.write(json.dumps(request | {"save": str(save) if save else None}) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "its process has ended"}
        return reply


def start_contestants(names: list[str], environment: Path | None) -> list[Contestant]:
    """Start the contestants that can be used here, and name the others."""
    python = Path(sys.executable)
    if environment is not None:
        with_torchcodec = environment_python(environment)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", TORCHCODEC]
        subprocess.run([with_torchcodec, *install], check=True)
    started = []
    for name in names:
        in_environment = environment is not None and name.startswith("torchcodec")
        contestant = Contestant(name, with_torchcodec if in_environment else python)
        if contestant.reason is None:
            started.append(contestant)
        else:
            print(f"left out: {name} ({contestant.reason})")
    return started


def measure(
    contestants: list[Contestant], source: Path, size: tuple[int, int], bucket: Bucket, rounds: int, folder: Path
) -> dict[str, list[Measured]]:
    """Decode a source with every contestant, ``rounds`` times after a first time that also saves its pixels."""
    found: dict[str, list[Measured]] = {}
    for contestant in contestants:
        reply = contestant.decode(source, size, bucket, save=folder / f"{contestant.name}.npy")
        if "error" in reply:
            print(f"  left out: {contestant.name} ({reply['error']})")
        else:
            found[contestant.name] = []
    for _ in range(rounds):
        for contestant in contestants:
            if contestant.name in found:
                reply = contestant.decode(source, size, bucket)
                frames = bucket.num_frames
                found[contestant.name].append(Measured(frames / reply["cpu_s"], frames / reply["wall_s"]))
    return found


def difference(folder: Path, name: str) -> str:
    """Largest and mean difference of pixels from Latentmill's, and PSNR."""
    ours, theirs = (np.load(folder / f"{each}.npy") for each in (OURS, name))
    if ours.shape != theirs.shape:
        return ""
    levels = np.abs(ours.astype(np.int16) - theirs)
    mse = float(np.mean(np.square(levels, dtype=np.float64)))
    psnr = f"{10 * math.log10(255**2 / mse):.1f} dB" if mse else "equal"
    return f"{levels.max():5d} {levels.mean():6.2f} {psnr:>8s}"


def print_source(found: dict[str, list[Measured]], folder: Path) -> None:
    """Print the figures of all contestants for one source."""
    print(f"  {'':28s}frames/s per core          wall  ours is faster by         difference: max, mean, PSNR")
    for name, rounds in found.items():
        per_core = [each.per_core for each in rounds]
        ratios = [ours.per_core / theirs.per_core for ours, theirs in zip(found[OURS], rounds, strict=True)]
        print(
            f"  {name:28s}{_spread(per_core, '6.1f')} {statistics.median(each.wall for each in rounds):7.1f}  "
            f"{'' if name == OURS else _spread(ratios, '5.2f'):24s} {'' if name == OURS else difference(folder, name)}"
        )


def _spread(values: list[float], form: str) -> str:
    """The median, and the least and largest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_cpus(per_core: dict[str, float], gpu_frames_s: dict[str, float]) -> None:
    """Print the CPUs that decode as fast as one GPU encodes, for each source and VAE."""
    print("\nCPUs that one GPU needs for decoding: ceil(frames/s of its VAE / frames/s per core)")
    print(f"  {'':14s}" + "".join(f"{name:>16s}" for name in gpu_frames_s))
    for source, frames_s in per_core.items():
        print(f"  {source:14s}" + "".join(f"{math.ceil(speed / frames_s):16d}" for speed in gpu_frames_s.values()))


def _vae_speed(text: str) -> tuple[str, float]:
    """``NAME=FRAMES_S`` or ``FRAMES_S``."""
    name, equals, value = text.rpartition("=")
    return (name if equals else f"{value} frames/s"), float(value)


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heights", type=int, nargs="+", choices=list(HEIGHTS), default=list(HEIGHTS))
    parser.add_argument("--codecs", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--bucket", type=Bucket.parse, default=Bucket(51, 480, 848), help="default: 480x848x51")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help="environment for torchcodec, which stays")
    parser.add_argument(
        "--gpu-frames-s",
        type=_vae_speed,
        nargs="+",
        metavar="[VAE=]FRAMES_S",
        help="frames/s that one GPU encodes; default: VAEs on an H200",
    )
    return parser.parse_args()


def main() -> None:
    """Make the sources, measure and print."""
    arguments = parse_arguments()
    load = os.getloadavg()[0]
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} CPUs, load {load:.1f}, bucket {arguments.bucket}")
    names = [OURS, *(name for name in arguments.contestants if name != OURS)]
    contestants = start_contestants(names, arguments.environment)
    per_core: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = arguments.bucket.num_frames
        for height in arguments.heights:
            size = HEIGHTS[height]
            for codec, source in make_sources(folder, size, frames, arguments.codecs).items():
                mbit_s = source.stat().st_size * 8 * FPS / frames / 1e6
                print(f"\n{height}p {codec}, {mbit_s:.1f} Mbit/s, {frames} frames")
                found = measure(contestants, source, size, arguments.bucket, arguments.rounds, folder)
                print_source(found, folder)
                per_core[f"{height}p {codec}"] = statistics.median(each.per_core for each in found[OURS])
        for contestant in contestants:
            contestant.close()
    print_cpus(per_core, dict(arguments.gpu_frames_s or EXAMPLES))
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

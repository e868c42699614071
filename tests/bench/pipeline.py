"""Measures how busy a job keeps its VAE, and how a short job spends its time: ``python -m tests.bench.pipeline``.

The VAE takes a known time per clip: it sleeps, as a CPU does while a GPU works, for ``--times`` the processor time that
decoding a clip takes, which is measured first. Every round runs a bare loop of the same encodes, then the same job in every
way. Compare figures of one line only. For each job they are: the share of time that the VAE worked, from its first call to
its last; how much longer than the bare loop it took from the first call to the last commit; the longest wait of the VAE;
and the seconds from the command to the first call.

Then it runs jobs of 8 short clips with the real demo VAE, and splits their wall time into parts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pipeline.environment import cpu_model
from pipeline.storage.store import Store
from tests.bench.timed_vae import ENCODE_S, NOTES
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.paths import ROOT
from tests.support.s3_server import s3_bucket

SIZE, NUM_FRAMES = (128, 224), 17
WAYS = {
    "in process, local folder": ("--local", "folder"),
    "Ray, local folder": ("--ray", "folder"),
    "in process, moto S3": ("--local", "s3"),
    "Ray, moto S3": ("--ray", "s3"),
}


class Done(NamedTuple):
    """The events of a job; times are on the machine's monotonic clock."""

    spawned_s: float
    ended_s: float
    notes: list[tuple[str, float, float]]

    def of(self, name: str) -> list[tuple[float, float]]:
        """Begin and end of each event of this name, in order."""
        return sorted((begin, end) for event, begin, end in self.notes if event == name)

    def seconds(self, name: str) -> float:
        """Total duration of the events of this name."""
        return sum(end - begin for begin, end in self.of(name))


class Measured(NamedTuple):
    """Figures of one job, compared with the bare loop of its round."""

    busy: float
    overhead: float
    longest_wait_s: float
    start_s: float
    idle_s: dict[str, float]
    """Idle seconds by cause, from the job's summary."""


def run_job(sources: Path, output: str, notes: Path, *more: str, encode_s: float | None = None) -> Done:
    """Run a job in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", NOTES: str(notes)}
    environment |= {ENCODE_S: str(encode_s)} if encode_s else {}
    command = [sys.executable, "-m", "tests.bench.timed_vae", "--source", str(sources), "--output", output]
    spawned_s = time.monotonic()
    done = subprocess.run(
        [*command, *(flag for flag in more if flag != "--ray")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    ended_s = time.monotonic()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return Done(spawned_s, ended_s, [tuple(json.loads(line)) for line in notes.read_text().splitlines()])


def measure_decode_s(folder: Path, videos: Path, *more: str) -> float:
    """Processor time of decoding a clip: that of a job whose VAE takes no time, less that of a job of one clip."""
    few = folder / "few"
    few.mkdir()
    (few / "one.mp4").write_bytes(next(videos.iterdir()).read_bytes())
    used_s = []
    for number, sources in enumerate((few, videos)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        notes = folder / f"notes-decode-{number}"
        run_job(sources, str(folder / f"out-decode-{number}"), notes, "--local", *more, encode_s=1e-6)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (used_s[1] - used_s[0]) / (len(list(videos.iterdir())) - 1)


def bench_busy(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the busy share, overhead, longest wait and start-up time of each way."""
    videos = folder / "videos"
    for number in range(arguments.clips):
        make_clip(videos / f"{number:04d}.mp4", NUM_FRAMES + 3, size=(SIZE[0] * 2, SIZE[1] * 2), seed=number)
    more = ["--vae", str(TINY), "--buckets", f"{SIZE[0]}x{SIZE[1]}x{NUM_FRAMES}", "--cpus", "2"]
    more += ["--unit-clips", str(arguments.unit_clips), "--micro-batch", str(arguments.micro_batch)]
    decode_s = measure_decode_s(folder, videos, *more)
    encode_s = arguments.times * decode_s
    print(
        f"\n{arguments.clips} clips, {arguments.unit_clips} per unit; a clip takes {decode_s:.3f} s of processor time to "
        f"decode and {encode_s:.3f} s in the VAE"
    )
    results: dict[str, list[Measured]] = {way: [] for way in arguments.ways}
    for number in range(arguments.rounds):
        began_s = time.monotonic()
        for _ in range(arguments.clips // arguments.micro_batch):
            time.sleep(encode_s * arguments.micro_batch)
        bare_s = time.monotonic() - began_s
        for way in arguments.ways:
            flag, place = WAYS[way]
            with s3_bucket() if place == "s3" else nullcontext(str(folder)) as root:
                notes = folder / f"notes-{number}{flag}-{place}"
                done = run_job(videos, f"{root}/out-{number}{flag}", notes, *more, flag, encode_s=encode_s)
                results[way].append(_measured(done, bare_s, f"{root}/out-{number}{flag}"))
    print(f"{'':26s}busy share              overhead                longest wait  start  idle s by cause")
    for way, found in results.items():
        idle_s = {cause: sum(job.idle_s.get(cause, 0.0) for job in found) / len(found) for cause in found[0].idle_s}
        causes = sorted(((seconds, cause) for cause, seconds in idle_s.items() if seconds >= 0.05), reverse=True)
        print(
            f"{way:26s}{_spread([job.busy for job in found])} {_spread([job.overhead for job in found])} "
            f"{statistics.median(job.longest_wait_s for job in found) * 1e3:9.0f} ms "
            f"{statistics.median(job.start_s for job in found):6.1f} s  "
            f"{', '.join(f'{cause} {seconds:.2f}' for seconds, cause in causes)}"
        )


def _measured(done: Done, bare_s: float, output: str) -> Measured:
    calls = done.of("vae")
    committed_s = max(end for _, end in done.of("unit"))
    return Measured(
        busy=done.seconds("vae") / (calls[-1][1] - calls[0][0]),
        overhead=(committed_s - calls[0][0]) / bare_s - 1,
        longest_wait_s=max(after[0] - before[1] for before, after in pairwise(calls)),
        start_s=calls[0][0] - done.spawned_s,
        idle_s=json.loads(Store(output).get("summary.json"))["idle_s"],
    )


def _spread(values: list[float]) -> str:
    return f"{f'{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})':23s}"


def bench_short(folder: Path, rounds: int) -> None:
    """Print how jobs of 8 short clips spend their time."""
    videos = folder / "short"
    for number in range(8):
        make_clip(videos / f"{number}.mp4", NUM_FRAMES, seed=number)
    more = ["--vae", "demo", "--buckets", f"64x112x{NUM_FRAMES}", "--unit-clips", "2", "--cpus", "2"]
    for way, flag in (("in process", "--local"), ("on Ray", "--ray")):
        splits = []
        for number in range(rounds):
            notes = folder / f"notes-short-{number}{flag}"
            splits.append(_split(run_job(videos, str(folder / f"short-{number}{flag}"), notes, *more, flag)))
        print(f"\n8 short clips {way}, seconds (median of {rounds}, spread)")
        for part in splits[0]:
            values = [split[part] for split in splits]
            print(f"  {part:48s} {statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})")


def _split(done: Done) -> dict[str, float]:
    """Split a job's wall time into parts, which add up to the first entry."""
    ((imported_s, _),) = done.of("imported")
    ((main_s, returned_s),) = done.of("main")
    ((encoder_s, ready_s),) = done.of("start encoder")
    ((finish_s, finished_s),) = done.of("complete_index")
    connected_s = sum(end - begin for begin, end in done.of("connect"))
    units = done.of("unit")
    encoded_s = max(end for _, end in units)
    assert done.spawned_s <= imported_s <= main_s <= encoder_s <= ready_s <= encoded_s <= finish_s <= finished_s
    return {
        "the whole": done.ended_s - done.spawned_s,
        "interpreter and imports": main_s - done.spawned_s,
        "card, probe of the store, plan": encoder_s - main_s - connected_s - _worker_s(done),
        "Ray: start of a cluster": connected_s,
        "Ray Data: until an actor begins": _worker_s(done),
        "encoder: torch, VAE, beside decoders' server": ready_s - encoder_s,
        "units: decode, encode, commit": encoded_s - ready_s,
        "Ray Data: until the last report is back": finish_s - encoded_s,
        "index": finished_s - finish_s,
        "summary, leaving Ray": returned_s - finished_s,
        "end of the process": done.ended_s - returned_s,
    }


def _worker_s(done: Done) -> float:
    connects = done.of("connect")
    return done.of("start encoder")[0][0] - connects[0][1] if connects else 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--unit-clips", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--times", type=float, default=3.0, help="the VAE's time per clip, in decode CPU times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--only", choices=["busy", "short"])
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server names every request
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} CPUs, load {load}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "short":
            bench_busy(Path(folder), arguments)
        if arguments.only != "busy":
            bench_short(Path(folder), arguments.rounds)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

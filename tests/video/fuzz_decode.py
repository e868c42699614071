"""Decodes damaged variants of real clips. Every outcome must be a clip, a skip or a reject.

    python -m tests.video.fuzz_decode --seed 1 --count 2000 [--media FOLDER]

A seed reproduces its variants. A variant that shows a fault is kept in a file whose name is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.bucket import Bucket
from pipeline.errors import LatentmillError
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import MAX_GROWTH, Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import Skip, select_windows
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import make_clip, make_image, package_clip
from tests.support.processes import descendants

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
RECIPE = Recipe(vae="x", buckets=(Bucket(8, 32, 56), Bucket(1, 32, 56)), micro_batch=(1, 1), windows="all")
BY_TIME = dataclasses.replace(RECIPE, fps=24.0, remainder="shorten")
MEMORY_BYTES = 1 << 30
"""Memory limit of a child. This process may hold a clip of the same size for each thread."""
CHILD_STARTS_WITH_BYTES = 1 << 29
TIMEOUT_S = 10.0
OUTCOMES_TAKEN = 6
QUOTE_BYTES = 16
"""A message that has this many consecutive bytes of the file quotes it."""

CLIPS: list[tuple[str, str, dict[str, Any]]] = [
    ("h264.mp4", "libx264", {"options": {"bf": "2"}}),
    ("h264.mkv", "libx264", {}),
    ("h264.avi", "libx264", {}),
    ("h264.ts", "libx264", {}),
    ("h265.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}),
    ("mpeg4.avi", "mpeg4", {"options": {"qscale": "4"}}),
    ("vp9.webm", "libvpx-vp9", {"options": {"deadline": "realtime"}}),
    ("vp8.webm", "libvpx", {}),
    ("mpeg2.mpg", "mpeg2video", {"fps": 25}),
    ("mpeg2.ts", "mpeg2video", {"fps": 25}),
    ("av1.mp4", "libsvtav1", {"options": {"preset": "12"}}),
    ("flv1.flv", "flv", {}),
    ("ntsc.mov", "libx264", {"fps": Fraction(30000, 1001)}),
]
PACKAGE_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
Mutation = Callable[[random.Random, bytearray, bytes], None]


@dataclass
class FuzzResult:
    """Outcomes and faults of a run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    wall_s: float = 0.0
    our_peak_bytes: int = 0
    child_peak_bytes: int = 0

    def rejects(self, reason: str) -> int:
        """Number of rejects with a reason, by any decoder."""
        return sum(count for name, count in self.outcomes.items() if name.endswith(f"/{reason}"))


def originals(folder: Path) -> list[Path]:
    """Undamaged files: a clip for every codec that FFmpeg can encode here, pictures, and real clips."""
    found = [make_image(folder / f"picture.{suffix}") for suffix in ("png", "jpg", "webp")]
    for name, codec, options in CLIPS:
        if codec in av.codecs_available:
            found.append(make_clip(folder / name, 20, **{"codec": codec, **options}))
    return found + [package_clip(name) for name in PACKAGE_CLIPS]


def _flip_few(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_many(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(max(9, len(data) // rng.choice([50, 200, 1000]))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_header(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(min(len(data), 1024))] = rng.randrange(256)


def _flip_end(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.randint(1, 20)):
        data[-1 - rng.randrange(min(len(data), 2048))] = rng.randrange(256)


def _set_numbers(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Replace sizes, counts and times by extreme values."""
    for _ in range(rng.randint(1, 4)):
        value = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\0\xff\xff\xff"])
        start = rng.randrange(min(len(data), rng.choice([600, 1 << 30])))
        data[start : start + 4] = value


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(1, len(data)) :]


def _zero_block(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = _block(rng, data)
    data[start : start + size] = bytes(size)


def _remove_block(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = _block(rng, data)
    if size < len(data):
        del data[start : start + size]


def _double_block(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = _block(rng, data)
    target = rng.randrange(len(data))
    data[target:target] = data[start : start + size]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = _block(rng, data)
    from_other = rng.randrange(len(other))
    data[start : start + size] = other[from_other : from_other + size]


def _block(rng: random.Random, data: bytearray) -> tuple[int, int]:
    size = min(len(data), rng.choice([1, 16, 200, 2000, 20000]))
    return rng.randrange(len(data) - size + 1), size


MUTATIONS: list[Mutation] = [
    _flip_few,
    _flip_many,
    _flip_header,
    _flip_end,
    _set_numbers,
    _cut,
    _zero_block,
    _remove_block,
    _double_block,
    _splice,
]


def variants(sources: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files with a name for each. Equal seeds and sources give equal files."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        mutation = MUTATIONS[number % len(MUTATIONS)]
        data = bytearray(rng.choice(sources))
        mutation(rng, data, rng.choice(sources))
        yield f"{seed}/{number}{mutation.__name__}", bytes(data)


def backends() -> list[str]:
    """Names of the decoders that are installed."""
    return ["pyav"] + (["decord"] if importlib.util.find_spec("decord") else [])


def fuzz(files: list[Path], count: int, seed: int, threads: int = 3) -> FuzzResult:
    """Decode ``count`` variants of the files with every backend, then check that a good clip still decodes."""
    findings = FuzzResult()
    run = Run(output="", vae="", sources=(), cpus=1, decode_timeout_s=TIMEOUT_S, decode_memory_bytes=MEMORY_BYTES)
    started_s = time.monotonic()
    with ExitStack() as stack:
        decoders = {name: Decoders(dataclasses.replace(RECIPE, decoder=name), run) for name in backends()}
        for each in decoders.values():
            stack.callback(each.close)
        good = package_clip("bikes.mp4").read_bytes()
        before = {name: _frames(each, good) for name, each in decoders.items()}
        sources = [path.read_bytes() for path in files]
        stack.enter_context(_memory_watched(findings))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        tasks: list[Any] = []
        for name, data in variants(sources, count, seed):
            if len(tasks) > 4 * threads:
                tasks.pop(0).result()
            tasks += [pool.submit(_try, backend, decoders[backend], name, data, findings) for backend in decoders]
        for task in tasks:
            task.result()
        for name, each in decoders.items():
            again = _frames(each, good)
            if len(before[name]) != len(again) or not all(map(np.array_equal, before[name], again)):
                findings.faults.append(f"{name}: a good clip decodes differently afterwards, to {len(again)} clips")
    if findings.our_peak_bytes > threads * MEMORY_BYTES:
        findings.faults.append(f"this process grew by {findings.our_peak_bytes} bytes")
    if findings.child_peak_bytes > (1 + MAX_GROWTH) * MEMORY_BYTES + CHILD_STARTS_WITH_BYTES:
        findings.faults.append(f"a child held {findings.child_peak_bytes} bytes")
    findings.wall_s = time.monotonic() - started_s
    return findings


def _decode(decoders: Decoders, data: bytes, recipe: Recipe = RECIPE) -> Iterator[Outcome]:
    fd = os.memfd_create("variant")
    with open(fd, "r+b") as f:
        f.write(data)
        f.flush()
        outcomes = decoders.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
        for _, outcome in itertools.islice(outcomes, OUTCOMES_TAKEN):
            yield outcome
        outcomes.close()  # type: ignore[attr-defined]


def _frames(decoders: Decoders, data: bytes) -> list[np.ndarray]:
    return [o.frames_THWC for o in _decode(decoders, data) if isinstance(o, Clip)]


def _try(backend: str, decoders: Decoders, name: str, data: bytes, findings: FuzzResult) -> None:
    """Decode one variant with one decoder, and add every broken promise to the faults."""
    started_s = time.monotonic()
    faults, outcomes = [], []
    try:
        for outcome in _decode(decoders, data, random.Random(name).choice([RECIPE, BY_TIME])):
            outcomes.append(outcome)
            faults += _check(outcome, data)
    except LatentmillError:
        raise
    except Exception as error:  # this is what the run looks for
        faults.append(f"raised {type(error).__name__}: {error}")
    spent_s = time.monotonic() - started_s
    if spent_s > 2 * (3 + len(outcomes)) * TIMEOUT_S:
        faults.append(f"took {spent_s:.0f} s")
    if not outcomes:
        faults.append("has no outcome")
    findings.longest_s = max(findings.longest_s, spent_s)
    for outcome in outcomes:
        findings.outcomes[f"{backend}  {_name(outcome)}"] += 1
    if faults:
        kept = Path(tempfile.gettempdir()) / f"fuzz-{name.replace('/', '-')}"
        kept.write_bytes(data)
        findings.faults += [f"{backend} {kept}: {fault}" for fault in faults]


def _name(outcome: Outcome) -> str:
    if isinstance(outcome, RejectedWindow):
        return f"{outcome.reject.stage}/{outcome.reject.reason}"
    return "clip" if isinstance(outcome, Clip) else f"skip {outcome.reason}"


def _check(outcome: Outcome, data: bytes) -> list[str]:
    if isinstance(outcome, Skip):
        return []
    if isinstance(outcome, Clip):
        bucket = outcome.window.bucket
        wanted = (len(outcome.window.pts), bucket.height, bucket.width, 3)
        return [] if outcome.frames_THWC.shape == wanted else [f"a clip of {outcome.frames_THWC.shape}"]
    if not isinstance(outcome, RejectedWindow):
        return [f"gave {outcome!r}"]
    text = outcome.reject.message.encode()
    quotes = [text[i : i + QUOTE_BYTES] for i in range(len(text) - QUOTE_BYTES + 1)]
    found = [f"quotes {quote!r}" for quote in quotes if quote in data]
    return found + (
        [] if outcome.reject.stage and outcome.reject.reason and outcome.reject.message else ["says nothing"]
    )


@contextmanager
def _memory_watched(findings: FuzzResult) -> Iterator[None]:
    """Inside the ``with`` block, measure the peak memory of children and the growth of this process."""
    stop = threading.Event()
    start_bytes = resident_bytes(os.getpid())

    def watch() -> None:
        while not stop.wait(0.1):
            findings.our_peak_bytes = max(findings.our_peak_bytes, resident_bytes(os.getpid()) - start_bytes)
            held = [resident_bytes(pid) for pid in descendants(os.getpid())]
            findings.child_peak_bytes = max([findings.child_peak_bytes, *held])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def resident_bytes(pid: int) -> int:
    """Peak resident memory of a process, or current memory of this one; 0 if the process is gone."""
    name = "VmRSS:" if pid == os.getpid() else "VmHWM:"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(argv: list[str] | None = None) -> int:
    """Fuzz and print the result. The exit code is 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000, help="variants (default 2000)")
    parser.add_argument("--media", type=Path, help="folder of further files to damage")
    parser.add_argument("--threads", type=int, default=3)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = originals(Path(folder))
        if arguments.media:
            files += sorted(p for p in arguments.media.rglob("*") if p.is_file() and p.stat().st_size)
        findings = fuzz(files, arguments.count, arguments.seed, arguments.threads)
    print(f"seed {arguments.seed}, {arguments.count} variants of {len(files)} files, {', '.join(backends())}")
    for name, number in sorted(findings.outcomes.items()):
        print(f"{number:7}  {name}")
    crashes, timeouts, memory = (findings.rejects(reason) for reason in ("crash", "timeout", "memory"))
    print(f"contained: {crashes} crashes, {timeouts} timeouts, {memory} memory faults")
    print(f"{findings.wall_s:.0f} s in total, {findings.longest_s:.1f} s for the slowest variant")
    print(
        f"peak memory: {findings.child_peak_bytes >> 20} MiB of a child; this process grew {findings.our_peak_bytes >> 20}"
    )
    for fault in findings.faults:
        print(f"FAULT {fault}")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())

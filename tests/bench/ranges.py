"""Measures what ranges of a long video cost: ``python -m tests.bench.ranges``.

Makes a video of two hours and low resolution, and 50 ranges of it. Decodes the ranges in one pass, as a unit does, and
compares that with decoding as many frames from 50 files that hold nothing else; with ``--whole`` also with decoding the
whole video, and with ``--job`` the same with whole jobs, which also encode. Prints the wall time of each, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from functools import partial
from pathlib import Path

import av

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip
from pipeline.video.ranges import select_in_range
from stvae import read_card
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import make_clip

FPS, SIZE = 24, (144, 256)
GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)


def repeat(source: Path, path: Path, times: int) -> Path:
    """Write a video that holds the packets of another one several times."""
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        template = a.streams.video[0]
        stream = b.add_stream_from_template(template)
        packets = [packet for packet in a.demux(template) if packet.size]
        length = template.duration
        assert length is not None
        content = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe, p.time_base) for p in packets]
        for number in range(times):
            for data, pts, dts, duration, is_keyframe, time_base in content:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration = pts + number * length, dts + number * length, duration
                packet.time_base, packet.is_keyframe, packet.stream = time_base, is_keyframe, stream
                b.mux(packet)
    return path


def decode(path: Path, ranges: list[tuple[float, float | None] | None], decoders: Decoders, recipe: Recipe) -> int:
    """Decode ranges of a file in one pass. Returns the number of clips."""
    select = partial(select_in_range, recipe=recipe, geometry=GEOMETRY)
    with path.open("rb") as file:
        decoded = decoders.clips_of_ranges(file.fileno(), ranges, [select] * len(ranges))
        return sum(isinstance(outcome, Clip) for _, (_, outcome) in decoded)


def run_job(folder: Path, rows: list[tuple[Path, tuple[float, float] | None]]) -> float:
    """Encode the rows of a manifest, files or ranges of them, with the demo VAE. Returns the seconds of the whole job."""
    folder.mkdir()
    lines = [
        {"path": str(path)} | ({"start": r[0], "end": r[1]} if r else {"clip": n}) for n, (path, r) in enumerate(rows)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = read_card("demo")
    recipe = Recipe(vae=card.sha256, buckets=(Bucket(17, 64, 112),), micro_batch=(1,), windows="all")
    run = Run(output=str(folder / "out"), vae="demo", sources=(str(folder / "m.jsonl"),), local=True, cpus=1)
    begin = time.monotonic()
    encode(recipe, run, card, say=lambda line: None)
    return time.monotonic() - begin


def main() -> None:
    """Make the videos, decode them and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="duration of the video (default: 2)")
    parser.add_argument("--ranges", type=int, default=50, help="number of ranges (default: 50)")
    parser.add_argument("--range-s", type=float, default=4.0, help="seconds of a range (default: 4)")
    parser.add_argument("--job", action="store_true", help="also compare whole jobs with the demo VAE")
    parser.add_argument("--whole", action="store_true", help="also decode the whole video")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    recipe = Recipe(vae="x", buckets=(Bucket(17, *SIZE),), micro_batch=(1,), windows="all")
    decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        piece = make_clip(folder / "piece.mp4", 60 * FPS, size=SIZE, fps=FPS, options={"g": "48", "crf": "23"})
        whole = repeat(piece, folder / "whole.mp4", round(args.hours * 60))
        short = make_clip(
            folder / "short.mp4", round(args.range_s * FPS), size=SIZE, fps=FPS, options={"g": "48", "crf": "23"}
        )
        starts = sorted(draw.uniform(0, args.hours * 3600 - args.range_s) for _ in range(args.ranges))
        decode(short, [None], decoders, recipe)  # starts a child

        def timed(what: str, jobs: list[tuple[Path, list[tuple[float, float | None] | None]]]) -> float:
            begin = time.monotonic()
            clips = sum(decode(path, ranges, decoders, recipe) for path, ranges in jobs)
            wall_s = time.monotonic() - begin
            print(f"{what:<45} {clips:>6} clips {wall_s:8.2f} s")
            return wall_s

        print(f"{args.hours:g} h of {SIZE[1]}x{SIZE[0]} at {FPS} fps, {args.ranges} ranges of {args.range_s:g} s")
        alone_s = timed("the same frames from files of their own", [(short, [None])] * args.ranges)
        probe_s = timed("one range", [(whole, [(starts[0], starts[0] + args.range_s)])])
        together_s = timed("all ranges of the long video, one pass", [(whole, [(s, s + args.range_s) for s in starts])])
        print(f"ratio of ranges to files of their own: {together_s / alone_s:.2f} (reading the index: {probe_s:.2f} s)")
        if args.job:
            rows = [(whole, (s, s + args.range_s)) for s in starts]
            alone_s = run_job(folder / "alone", [(short, None)] * args.ranges)
            together_s = run_job(folder / "together", rows)
            print(
                f"job of files of their own {alone_s:.1f} s, of the ranges {together_s:.1f} s: {together_s / alone_s:.2f}"
            )
        if args.whole:
            whole_s = timed("the whole video", [(whole, [None])])
            print(f"ratio of the whole video to the ranges: {whole_s / together_s:.1f}")
    decoders.close()


if __name__ == "__main__":
    main()

"""Measures what bucket groups save: ``python -m tests.bench.groups``.

Encodes the same videos in two groups of buckets with one job, and in each of the groups with a job of its own, and prints
the wall times, their ratio, and whether all latents are the same bytes. Rounds alternate; medians are printed. With
``--decode`` nothing is encoded: the clips of both are decoded only, which is what the groups share.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip
from pipeline.video.windows import select_windows
from stvae import load_vae, read_card
from tests.support.clips_maker import make_clip

GROUPS = (Bucket(17, 64, 112, "low"), Bucket(17, 128, 224, "high"))


def tensors(output: Path) -> dict[tuple[str, int, str], bytes]:
    """The tensors of an output by key, window and bucket."""
    found = {}
    for path in (output / "metadata").iterdir():
        for row in pq.read_table(path).to_pylist():
            if row["shard"]:
                with (output / row["shard"]).open("rb") as shard:
                    shard.seek(row["tensor_offset"])
                    found[row["key"], row["window"], row["bucket"]] = shard.read(row["tensor_nbytes"])
    return found


def main() -> None:
    """Make the videos, run the jobs or decode, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8, help="number of videos (default: 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of a video (default: 10)")
    parser.add_argument("--height", type=int, default=720, help="height of the videos, which are 16:9 (default: 720)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--decode", action="store_true", help="decode only")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    card = read_card("demo")
    recipe = Recipe(vae=card.sha256, buckets=GROUPS, micro_batch=(4, 2), windows="all")
    alone = [
        dataclasses.replace(recipe, buckets=(dataclasses.replace(bucket, group=""),), micro_batch=(size,))
        for bucket, size in recipe.clips_per_call.items()
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (args.height, args.height * 16 // 9)
        for number in range(args.videos):
            make_clip(folder / "videos" / f"{number}.mp4", round(args.seconds * 24), size=size, seed=number)
        run = Run(sources=(str(folder / "videos"),), output="", vae="demo", local=True, cpus=2)
        decoders = Decoders(recipe, run)
        geometry = load_vae("demo").card.geometry

        def decode(each: Recipe) -> None:
            for path in sorted((folder / "videos").iterdir()):
                with path.open("rb") as file:
                    select = partial(select_windows, recipe=each, geometry=geometry)
                    assert any(isinstance(o, Clip) for _, o in decoders.clips(file.fileno(), select))

        def timed(what: str, each: Recipe) -> float:
            begin = time.monotonic()
            if args.decode:
                decode(each)
            else:
                output = str(folder / what)
                encode(each, dataclasses.replace(run, output=output), card, say=lambda line: None)
            return time.monotonic() - begin

        decode(alone[0])  # starts a child
        times: list[tuple[float, float]] = []
        for number in range(args.rounds):
            together_s = timed(f"both{number}", recipe)
            times.append((together_s, sum(timed(f"alone{number}-{n}", each) for n, each in enumerate(alone))))
        decoders.close()
        one_s, two_s = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"one job with two groups {one_s:.2f} s, two jobs {two_s:.2f} s, ratio {ratio:.2f} ({times})")
        if not args.decode:
            separate = tensors(folder / "alone0-0") | tensors(folder / "alone0-1")
            print(f"{len(separate)} latents, the same bytes: {tensors(folder / 'both0') == separate}")


if __name__ == "__main__":
    main()

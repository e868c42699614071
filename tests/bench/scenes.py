"""Measures how well scenes are found: ``python -m tests.bench.scenes``. Prints precision and recall of every detector.

Makes videos of shots from real clips, in a random but repeatable order, joined by hard cuts or by dissolves. A boundary
counts as found if a scene ends within 2 frames of a cut, or inside a dissolve. Also prints how fast detection is.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pipeline.bucket import Bucket
from pipeline.recipe import SCENE_THRESHOLDS, Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.windows import Skip, VideoFacts
from tests.support.clips_maker import make_clip, package_clip

SIZE = (144, 256)
SHOTS = {
    "bikes.mp4": ((2, 28), (32, 73), (80, 134), (140, 184), (190, 238)),
    "bigbuckbunny.mp4": ((0, 65), (66, 130)),
    "carphone_pristine.mp4": ((0, 60), (60, 118)),
}
"""Frames of the clips between which there is no cut."""
TOLERANCE_FRAMES = 2


class Boundary(NamedTuple):
    """Where one shot becomes the next: frames from ``start`` to ``stop`` belong to both; none for a cut."""

    start: int
    stop: int

    @property
    def kind(self) -> str:
        """What kind of boundary it is."""
        return "cut" if self.start == self.stop else "dissolve"

    def is_found_by(self, end: int, begin: int) -> bool:
        """Return whether a scene that ends at ``end``, before one that begins at ``begin``, shows this boundary."""
        slack = TOLERANCE_FRAMES
        return end <= self.stop + slack and begin >= self.start - slack


def read_shots() -> list[list[np.ndarray]]:
    """Frames uint8 ``[H,W,3]`` of every shot."""
    shots = []
    for name, spans in SHOTS.items():
        with av.open(str(package_clip(name))) as container:
            height, width = SIZE
            frames = [f.to_ndarray(format="rgb24", width=width, height=height) for f in container.decode(video=0)]
        shots += [frames[start:stop] for start, stop in spans]
    return shots


def join(shots: list[list[np.ndarray]], draw: random.Random) -> tuple[list[np.ndarray], list[Boundary]]:
    """Join shots by cuts or dissolves of 8 to 20 frames. Returns all frames and the boundaries."""
    frames, boundaries = list(shots[0]), []
    for shot in shots[1:]:
        length = draw.choice([0, 0, 8, 14, 20])
        length = min(length, len(shot) // 2)
        start = len(frames) - length
        for i in range(length):
            share = (i + 1) / (length + 1)
            frames[start + i] = ((1 - share) * frames[start + i] + share * shot[i]).astype(np.uint8)
        boundaries.append(Boundary(start, len(frames)))
        frames += shot[length:]
    return frames, boundaries


def find_scenes(path: Path, decoders: Decoders) -> list[tuple[int, int]]:
    """The scenes that the job would use."""
    found: list[tuple[int, int]] = []

    def note(facts: VideoFacts) -> list[Skip]:
        found.extend(facts.scenes or ())
        return []

    with path.open("rb") as file:
        for outcome in decoders.clips(file.fileno(), note):
            raise SystemExit(f"detection failed: {outcome}")
    return found


def make_videos(folder: Path, count: int) -> Iterator[tuple[Path, list[Boundary], int]]:
    """Write the videos. Yields each with its boundaries and its number of frames."""
    draw, shots = random.Random(0), read_shots()
    for number in range(count):
        frames, boundaries = join(draw.sample(shots, len(shots)), draw)
        options = {"g": "48", "crf": "20", "bf": "2"}
        path = make_clip(folder / f"{number}.mp4", size=SIZE, frames=frames, options=options)
        yield path, boundaries, len(frames)


def main() -> None:
    """Make the videos, find their scenes with every detector and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8, help="number of videos (default: 8)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        videos = list(make_videos(Path(name), args.videos))
        kinds = [boundary.kind for _, boundaries, _ in videos for boundary in boundaries]
        frames = sum(count for *_, count in videos)
        print(f"{len(videos)} videos, {frames} frames, {kinds.count('cut')} cuts, {kinds.count('dissolve')} dissolves")
        for method in SCENE_THRESHOLDS:
            recipe = Recipe(vae="x", buckets=(Bucket(17, *SIZE),), micro_batch=(1,), scenes=method)  # type: ignore[arg-type]
            decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
            found, right, recalled = 0, 0, {"cut": 0, "dissolve": 0}
            begin_s = time.monotonic()
            for path, boundaries, _ in videos:
                scenes = find_scenes(path, decoders)
                edges = [(a[1], b[0]) for a, b in pairwise(scenes)]
                found += len(edges)
                right += sum(any(boundary.is_found_by(*edge) for boundary in boundaries) for edge in edges)
                for boundary in boundaries:
                    recalled[boundary.kind] += any(boundary.is_found_by(*edge) for edge in edges)
            speed = frames / (time.monotonic() - begin_s)
            decoders.close()
            shares = {kind: recalled[kind] / max(1, kinds.count(kind)) for kind in recalled}
            print(
                f"{method:<9} precision {right / max(1, found):.2f}  recall of cuts {shares['cut']:.2f}, "
                f"of dissolves {shares['dissolve']:.2f}  ({speed:.0f} frames/s on one core)"
            )


if __name__ == "__main__":
    main()

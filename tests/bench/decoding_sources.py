"""Videos to measure decoding with: textures that zoom, turn and slide over each other, under grain.

Their bit rates are near those of films at the same size, because decoders take longer for more bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

FPS = 24


class Encoding(NamedTuple):
    """An encoder of PyAV with fast settings, and the suffix of its container."""

    encoder: str
    options: dict[str, str]
    suffix: str


ENCODINGS = {
    "h264": Encoding("libx264", {"preset": "veryfast", "crf": "23", "tune": "film"}, ".mp4"),
    "hevc": Encoding("libx265", {"preset": "superfast", "crf": "26", "x265-params": "log-level=none"}, ".mp4"),
    "vp9": Encoding("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0"}, ".webm"),
    "av1": Encoding("libsvtav1", {"preset": "11", "crf": "36"}, ".mp4"),
}


def make_sources(folder: Path, size: tuple[int, int], num_frames: int, codecs: list[str]) -> dict[str, Path]:
    """Encode the same pictures of ``size`` (height, width) with each codec. Returns the path by codec."""
    paths = {codec: folder / f"{codec}-{size[0]}{ENCODINGS[codec].suffix}" for codec in codecs}
    containers = {codec: av.open(str(path), "w") for codec, path in paths.items()}
    streams: dict[str, Any] = {}
    for codec, container in containers.items():
        stream: Any = container.add_stream(ENCODINGS[codec].encoder, rate=FPS, options=ENCODINGS[codec].options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        streams[codec] = stream
    for picture_HWC in _pictures(*size, num_frames):
        frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24").reformat(format="yuv420p")
        for codec, container in containers.items():
            container.mux(streams[codec].encode(frame))
    for codec, container in containers.items():
        container.mux(streams[codec].encode())
        container.close()
    # as root, SVT-AV1 gives this thread real-time priority, which processes started later would inherit
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return paths


def _pictures(height: int, width: int, num_frames: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield uint8 RGB ``[H,W,3]``: a background that zooms and turns, a smaller picture that slides, and grain."""
    background = _texture(height * 5 // 4, width * 5 // 4, seed=0)
    foreground = _texture(height // 2, width // 2, seed=1)
    grain = torch.randn(1, 1, height + 64, width + 64, generator=torch.Generator().manual_seed(2))
    for number in range(num_frames):
        t = number / FPS
        angle, zoom = 0.05 * math.sin(t), 0.75 + 0.04 * t
        across, down = zoom * math.cos(angle), zoom * math.sin(angle)
        matrix = torch.tensor(
            [[[across, -down * height / width, 0.03 * t], [down * width / height, across, 0.02 * math.sin(2 * t)]]]
        )
        grid = F.affine_grid(matrix, [1, 3, height, width], align_corners=False)
        picture = F.grid_sample(background, grid, padding_mode="reflection", align_corners=False)
        top, left = int(height * (0.25 + 0.15 * math.sin(1.3 * t))), int(width * (0.1 + 0.12 * t)) % (width // 2)
        picture[..., top : top + height // 2, left : left + width // 2] = foreground
        y, x = np.random.default_rng(number).integers(0, 64, 2)
        levels = picture * 34 + 128 + 3 * grain[..., y : y + height, x : x + width]
        yield levels.clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def _texture(height: int, width: int, seed: int) -> torch.Tensor:
    """Noise of nine sizes, mostly gray, with sharp edges along its contours; float ``[1,3,H,W]`` of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for octave in range(1, 10):
        scale = 2**octave
        noise = torch.randn(1, 3, max(2, height * scale // 512), max(2, width * scale // 512), generator=generator)
        noise = noise.mean(1, keepdim=True) + 0.35 * noise
        total += F.interpolate(noise, size=(height, width), mode="bicubic") / scale**0.55
    total = (total - total.mean()) / total.std()
    return total + 0.8 * torch.sign(torch.sin(4 * total[:, :1]))

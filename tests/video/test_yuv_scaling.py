"""``resize: ffmpeg``: frames scaled in YUV show the same picture as frames that become RGB first."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.video import pyav_reader
from pipeline.video.pictures.reading import upright_frames
from pipeline.video.placement import CropPosition, fit_to_bucket
from pipeline.video.resize import resize_frame
from tests.support.clips_maker import make_clip, make_image
from tests.video.test_containers import interlaced_clip

LARGE = (240, 416)


def smooth_pictures(height: int, width: int, count: int = 6) -> list[np.ndarray]:
    """Pictures of soft waves in several colors, which move."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [[np.sin((x * (c + 1) + y * (3 - c)) / 120 + i / 3 + c) for c in range(3)] for i in range(count)]
    return [(127 + 110 * np.stack(wave, axis=-1)).astype(np.uint8) for wave in waves]


def resized(path: Path, bucket: Bucket, method: Literal["bicubic", "ffmpeg"], *, tone_map: bool = False) -> np.ndarray:
    """All frames of a file at a bucket's size, with the crop at the bottom right."""
    with path.open("rb") as file:
        facts = pyav_reader.probe(file, 1 << 24, 60.0)
        placement = fit_to_bucket(facts.width, facts.height, bucket, CropPosition(0.9, 0.9))
        stored = method == "ffmpeg"
        found = upright_frames(file, facts, facts.pts, deinterlace=False, tone_map=tone_map, as_stored=stored)
        return np.stack([resize_frame(frame, placement, method) for _, frame in found if frame is not None])


def differences(path: Path, bucket: Bucket, **options: Any) -> np.ndarray:
    """Differences in levels between the two ways."""
    ours, plain = (resized(path, bucket, method, **options).astype(int) for method in ("ffmpeg", "bicubic"))
    return np.abs(ours - plain)


def rotated(path: Path, degrees: int) -> Path:
    make_clip(path.with_suffix(".plain.mp4"), frames=smooth_pictures(*LARGE), size=LARGE)
    with av.open(str(path.with_suffix(".plain.mp4"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return path


def smooth(path: Path, size: tuple[int, int] = LARGE, **options: Any) -> Path:
    return make_clip(path, frames=smooth_pictures(*size), size=size, **options)


CASES: dict[str, Callable[[Path], Path]] = {
    "plain": lambda folder: smooth(folder / "a.mp4"),
    "odd": lambda folder: smooth(folder / "a.webm", (239, 415), codec="libvpx-vp9"),
    "4:4:4": lambda folder: smooth(folder / "a.mp4", pix_fmt="yuv444p"),
    "10 bits": lambda folder: smooth(folder / "a.mp4", pix_fmt="yuv420p10le"),
    "full range": lambda folder: smooth(folder / "a.mp4", pix_fmt="yuvj420p"),
    "BT.709": lambda folder: smooth(folder / "a.mp4", options={"x264-params": "colormatrix=bt709"}),
    "wide pixels": lambda folder: smooth(folder / "a.mp4", sample_aspect=Fraction(4, 3)),
    **{f"rotated {n}": lambda folder, n=n: rotated(folder / "a.mp4", n) for n in (90, 180, 270)},
}


@pytest.mark.parametrize("bucket", [Bucket(1, 96, 160), Bucket(1, 161, 97), Bucket(1, 288, 504)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_picture_stays_the_same(tmp_path: Path, case: str, bucket: Bucket) -> None:
    found = differences(CASES[case](tmp_path), bucket)
    assert len(found) == 6 and found.shape[1:] == (bucket.height, bucket.width, 3)
    print("DIFF", case, bucket, found.mean().round(2), found.max())
    assert found.mean() < 2.6 and found.max() < 20, "a wrong matrix or range makes more than 5 in the mean"


def test_frames_that_are_not_in_yuv_are_resized_as_rgb(tmp_path: Path) -> None:
    for path in (
        make_image(tmp_path / "a.png"),
        make_clip(tmp_path / "rgb.mp4", 5, codec="libx264rgb", pix_fmt="rgb24"),
    ):
        assert not differences(path, Bucket(1, 32, 48)).any(), path
    assert not differences(smooth(tmp_path / "same.mp4"), Bucket(1, *LARGE)).any(), "nothing is scaled"


def test_tone_mapped_frames_are_resized_as_rgb(tmp_path: Path) -> None:
    path = smooth(
        tmp_path / "hdr.mp4",
        pix_fmt="yuv420p10le",
        options={"x264-params": "transfer=smpte2084:colormatrix=bt2020nc:colorprim=bt2020"},
    )
    assert not differences(path, Bucket(1, 96, 160), tone_map=True).any()
    assert differences(path, Bucket(1, 96, 160)).any(), "values that are kept are scaled in YUV"


def test_combs_of_interlaced_video_are_kept_apart(tmp_path: Path) -> None:
    path = interlaced_clip(tmp_path / "woven.mp4")
    assert differences(path, Bucket(1, 48, 80)).mean() < 12


def test_decord_cannot_scale_in_yuv() -> None:
    with pytest.raises(ConfigError, match="--decoder pyav"):
        Recipe(vae="x", buckets=(Bucket(1, 32, 32),), resize="ffmpeg", decoder="decord")

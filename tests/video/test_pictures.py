"""Pictures as cameras, phones and editors write them: oriented, animated or in tiles."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import Skip
from tests.support.clips_maker import numbered_frame, read_number
from tests.support.paths import ROOT
from tests.video.conftest import Decode

INPUTS = ROOT / "tests" / "video" / "inputs"
ORIENTATION = 0x112
UPRIGHT = numbered_frame(77, 64, 112)


def stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """A picture that is upright once its orientation is applied, and its EXIF."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turned = Image.fromarray(UPRIGHT)
    turned.getexif()[ORIENTATION] = inverse
    return ImageOps.exif_transpose(turned), exif


def clip_of(outcomes: list[Outcome]) -> np.ndarray:
    (outcome,) = outcomes
    assert isinstance(outcome, Clip), outcome
    return outcome.frames_THWC


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_upright(read: Decode, tmp_path: Path, orientation: int, suffix: str) -> None:
    picture, exif = stored(orientation)
    path = tmp_path / f"picture.{suffix}"
    picture.save(path, exif=exif, quality=95, lossless=True) if suffix == "webp" else picture.save(
        path, exif=exif, quality=95
    )
    facts, outcomes = read(path)
    (frame,) = clip_of(outcomes)
    assert np.abs(frame.astype(int) - UPRIGHT).mean() < 6 and read_number(frame) == 77
    assert facts is not None and facts.mirrored == (orientation in (2, 4, 5, 7))
    assert facts.fps is None and facts.fps_of(facts.pts) is not None


@pytest.mark.parametrize("orientation", [1, 5, 6])
def test_a_motion_jpeg_movie_whose_frames_have_exif_comes_upright(
    read: Decode, tmp_path: Path, orientation: int
) -> None:
    path = tmp_path / "movie.mov"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=24)
        picture, exif = stored(orientation)
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuvj420p"
        for number in range(18):
            content = io.BytesIO()
            picture.save(content, "JPEG", exif=exif, quality=95 - number)
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.duration, packet.is_keyframe = 1 / stream.average_rate, 1, True
            container.mux(packet)
    facts, outcomes = read(path)
    frames = clip_of(outcomes[:1])
    assert [read_number(frame) for frame in frames] == [77] * 17
    assert facts is not None and facts.fps == 24


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_are_videos_with_their_own_times(read: Decode, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    first, *rest = [Image.fromarray(numbered_frame(i, 64, 112)) for i in range(20)]
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=[40] * 10 + [100] * 10, **options)
    facts, outcomes = read(path)
    assert facts is not None and not facts.is_image
    starts_ms = [round(float((pts - facts.pts[0]) * facts.time_base * 1000)) for pts in facts.pts]
    assert starts_ms == [*range(0, 400, 40), *range(400, 1400, 100)] and facts.duration_s == pytest.approx(1.4)
    assert [read_number(frame) for frame in clip_of(outcomes[:1])] == list(range(17))
    assert outcomes[1:] == [Skip(index=1, reason="remainder")]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif", "jpg"])
def test_a_still_has_no_frame_rate(read: Decode, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still.{suffix}"
    Image.fromarray(numbered_frame(9, 64, 112)).save(path)
    facts, outcomes = read(path)
    assert facts is not None and facts.is_image and facts.fps is None
    (outcome,) = outcomes
    assert isinstance(outcome, Clip) and outcome.window.fps is None
    assert read_number(outcome.frames_THWC[0]) == 9


def test_an_animated_webp_that_ends_early_is_rejected(read: Decode, tmp_path: Path) -> None:
    path = tmp_path / "cut.webp"
    first, *rest = [Image.fromarray(numbered_frame(i, 64, 112)) for i in range(20)]
    first.save(path, save_all=True, append_images=rest, duration=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, (outcome,) = read(path)
    assert isinstance(outcome, RejectedWindow) and outcome.reject.name == "probe/truncated"

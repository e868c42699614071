"""Pictures as cameras, phones and editors write them: oriented, animated or in tiles."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.sources.discovery import find_sources
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import Skip
from tests.support.clips_maker import numbered_frame, read_number
from tests.support.heic_maker import make_tiled_heic
from tests.support.paths import ROOT
from tests.video.conftest import Decode

INPUTS = ROOT / "tests" / "video" / "inputs"
ORIENTATION = 0x112
UPRIGHT = numbered_frame(77, 64, 112)


def test_a_folder_takes_every_kind_of_picture(tmp_path: Path) -> None:
    names = [f"picture.{suffix}" for suffix in ("apng", "avif", "gif", "heic", "heif", "jpeg", "jpg", "png", "webp")]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (source,) = find_sources((str(tmp_path),))
    assert [file.path for file in source.files] == names


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


def test_a_picture_in_tiles_is_put_together(read: Decode) -> None:
    """896x512 pixels in 2x2 tiles of AV1, as libavif writes them."""
    path = INPUTS / "grid.avif"
    facts, outcomes = read(path, (512, 896))
    assert facts is not None and (facts.width, facts.height, facts.fps) == (896, 512, None)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.abs(clip_of(outcomes)[0].astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_in_tiles_is_oriented_by_its_container(read: Decode, tmp_path: Path, orientation: int) -> None:
    """``irot`` and ``imir`` are given to the whole grid; Pillow tells them as the orientation in EXIF."""
    angle, axis = {1: (0, -1), 2: (0, 1), 3: (2, -1), 4: (0, 0), 5: (1, 0), 6: (3, -1), 7: (1, 1), 8: (1, -1)}[
        orientation
    ]
    data = (INPUTS / "grid.avif").read_bytes()
    path = tmp_path / "turned.avif"
    path.write_bytes(with_properties(data, angle, axis))
    with Image.open(path) as picture:
        assert picture.getexif().get(ORIENTATION, 1) == orientation
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    facts, outcomes = read(path, expected.shape[:2])
    assert facts is not None and (facts.height, facts.width) == expected.shape[:2]
    assert np.abs(clip_of(outcomes)[0].astype(int) - expected).mean() < 1.5


def with_properties(data: bytes, angle: int, axis: int) -> bytes:
    """The file with ``irot`` and ``imir`` for its first item. Items move by as many bytes as the boxes take."""
    new = b"".join(
        struct.pack(">I4sB", 9, name, value) for name, value in ((b"irot", angle), (b"imir", axis)) if value >= 0
    )
    count, properties = len(new) // 9, 5
    ipma = data.index(b"ipma") - 4
    (ipma_size,) = struct.unpack_from(">I", data, ipma)
    old = data[ipma : ipma + ipma_size]
    end = 19 + old[18]  # of the first item's properties
    indices = bytes(0x80 | properties + 1 + i for i in range(count))
    entries = old[16:18] + bytes([old[18] + count]) + old[19:end] + indices + old[end:]
    grown_ipma = struct.pack(">I", ipma_size + count) + old[4:16] + entries
    grown = bytearray(data[:ipma] + new + grown_ipma + data[ipma + ipma_size :])
    shift = len(new) + count
    for name, by in ((b"meta", shift), (b"iprp", shift), (b"ipco", len(new))):
        position = data.index(name) - 4
        struct.pack_into(">I", grown, position, struct.unpack_from(">I", data, position)[0] + by)
    iloc = data.index(b"iloc") + 12
    for item in range(5):
        position = iloc + item * 14 + 6
        struct.pack_into(">I", grown, position, struct.unpack_from(">I", data, position)[0] + shift)
    return bytes(grown)


def test_a_picture_whose_tiles_are_cut_off_is_rejected(read: Decode, tmp_path: Path) -> None:
    path = tmp_path / "cut.avif"
    data = (INPUTS / "grid.avif").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, (outcome,) = read(path, (512, 896))
    assert isinstance(outcome, RejectedWindow)
    path.write_bytes(data[:300])
    _, (outcome,) = read(path, (512, 896))
    assert isinstance(outcome, RejectedWindow)


@pytest.mark.parametrize("quarter_turns", range(4))
def test_a_phones_picture_is_put_together_and_its_thumbnail_is_not_taken(
    read: Decode, tmp_path: Path, quarter_turns: int
) -> None:
    upright = numbered_frame(77, 112, 160)
    path = make_tiled_heic(tmp_path / "phone.heic", np.rot90(upright, -quarter_turns), quarter_turns)
    facts, outcomes = read(path, (112, 160))
    assert facts is not None and (facts.height, facts.width, facts.codec) == (112, 160, "hevc")
    assert np.abs(clip_of(outcomes)[0].astype(int) - upright).mean() < 3

"""Containers as cameras, editors and segmenters write them."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.video import pyav_reader
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import Skip
from tests.support.clips_maker import make_clip, numbered_frame, read_number
from tests.support.paths import ROOT
from tests.video.conftest import Decode

INPUTS = ROOT / "tests" / "video" / "inputs"


def numbers(outcomes: list[Outcome]) -> list[int]:
    """The numbers that the frames of all clips show."""
    assert not [outcome for outcome in outcomes if isinstance(outcome, RejectedWindow)], outcomes
    return [read_number(frame) for outcome in outcomes if isinstance(outcome, Clip) for frame in outcome.frames_THWC]


def reject(outcomes: list[Outcome]) -> str:
    (outcome,) = outcomes
    assert isinstance(outcome, RejectedWindow), outcome
    return outcome.reject.name


def stream_copy(source: Path, target: Path, *, shift_s: float = 0.0, skip_packets: int = 0) -> Path:
    """Copy the video stream of a file to another container, later by ``shift_s``, without its first packets."""
    with av.open(str(source)) as a, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for index, packet in enumerate(p for p in a.demux(video=0) if p.size):
            if index >= skip_packets:
                shift = round(shift_s / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                b.mux(packet)
    return target


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9"), ("asf", "mpeg4")])
def test_a_clock_that_does_not_start_at_zero_is_not_a_cut(
    read: Decode, tmp_path: Path, suffix: str, codec: str
) -> None:
    source = make_clip(tmp_path / "source.mp4", 20, codec=codec)
    path = stream_copy(source, tmp_path / f"late.{suffix}", shift_s=7)
    facts, outcomes = read(path)
    assert numbers(outcomes) == list(range(17))
    assert facts is not None and facts.duration_s == pytest.approx(20 / 24, abs=0.05)


def test_a_late_clock_does_not_hide_that_a_file_ends_early(read: Decode, tmp_path: Path) -> None:
    path = stream_copy(make_clip(tmp_path / "source.mp4", 100), tmp_path / "late.mkv", shift_s=7)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reject(read(path)[1]) == "probe/truncated"


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_subtitles_may_end_after_the_pictures(read: Decode, tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / "source.mkv", 20, codec="libvpx-vp9")
    kind = "webvtt" if suffix == "webm" else "subrip"
    text = tmp_path / "lines.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:09,000\nstill here\n")
    if kind == "webvtt":
        text = tmp_path / "lines.vtt"
        text.write_text("WEBVTT\n\n00:00.000 --> 00:09.000\nstill here\n")
    path = tmp_path / f"subtitles.{suffix}"
    with av.open(str(source)) as a, av.open(str(text)) as lines, av.open(str(path), "w") as b:
        video, subtitles = (b.add_stream_from_template(c.streams[0]) for c in (a, lines))
        for stream, packets in ((video, a.demux(video=0)), (subtitles, lines.demux())):
            for packet in packets:
                if packet.size:
                    packet.stream = stream
                    b.mux(packet)
    with av.open(str(path)) as container:
        assert container.duration > 8_900_000
    assert numbers(read(path)[1]) == list(range(17))


@pytest.mark.parametrize("dropped", [(5, 11), (17, 18, 19)])
def test_avi_frames_that_the_recording_program_dropped_are_not_missing(
    read: Decode, tmp_path: Path, dropped: tuple[int, ...]
) -> None:
    path = make_clip(tmp_path / "dropped.avi", 20, codec="mjpeg", pix_fmt="yuvj420p", options={"qscale": "2"})
    data = bytearray(path.read_bytes())
    chunks, position = [], data.index(b"movi") + 4
    while data[position : position + 4] == b"00dc":
        chunks.append(position)
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    index = data.index(b"idx1") + 8
    for number in dropped:
        start, end = chunks[number], [*chunks, position][number + 1]
        data[start + 4 : start + 16] = bytes(4) + b"JUNK" + (end - start - 16).to_bytes(4, "little")
        data[index + number * 16 + 12 : index + number * 16 + 16] = bytes(4)
    path.write_bytes(data)
    facts, outcomes = read(path)
    kept = [number for number in range(20) if number not in dropped]
    assert facts is not None and len(facts.pts) == len(kept)
    assert numbers(outcomes) == kept[:17]
    path.write_bytes(data[: len(data) * 2 // 3])
    assert reject(read(path)[1]) == "probe/truncated"


def test_a_transport_stream_that_was_cut_at_an_open_gop_begins_at_the_first_picture_that_decodes(
    read: Decode, tmp_path: Path
) -> None:
    options = {"options": {"x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}}
    source = make_clip(tmp_path / "source.ts", 40, codec="libx265", **options)
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        keys = [i for i, p in enumerate(packets) if p.is_keyframe]
        assert packets[keys[1] + 1].pts < packets[keys[1]].pts, "the encoder made no leading pictures"
    path = stream_copy(source, tmp_path / "cut.ts", skip_packets=keys[1])
    with av.open(str(path)) as container:
        expected = [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    facts, outcomes = read(path)
    assert numbers(outcomes) == expected[:17] and expected[0] > 0
    assert facts is not None and len(facts.pts) == len(expected)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("skip_packets", [5, 12, 13, 20])
def test_a_transport_stream_that_was_cut_anywhere_begins_at_a_keyframe(
    read: Decode, tmp_path: Path, codec: str, skip_packets: int
) -> None:
    settings = "open-gop=1:keyint=12:min-keyint=12:scenecut=0"
    options = {"x265-params": f"log-level=none:bframes=3:{settings}", "x264-params": f"bframes=2:{settings}"}
    name = codec.removeprefix("lib") + "-params"
    source = make_clip(tmp_path / "source.ts", 50, codec=codec, options={name: options[name]})
    facts, outcomes = read(stream_copy(source, tmp_path / "cut.ts", skip_packets=skip_packets))
    shown = numbers(outcomes)
    assert facts is not None and len(facts.pts) >= 17 and shown == list(range(shown[0], shown[0] + len(shown)))
    assert skip_packets - 4 <= shown[0] <= 25


def test_a_real_piece_of_a_stream_begins_at_the_first_picture_that_decodes(read: Decode) -> None:
    facts, outcomes = read(INPUTS / "open_gop.ts")
    assert facts is not None and len(facts.pts) == 23
    assert [type(outcome) for outcome in outcomes] == [Clip, Skip]


@pytest.mark.parametrize("with_video", [False, True])
def test_an_album_cover_is_not_the_video(read: Decode, tmp_path: Path, with_video: bool) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        audio: Any = container.add_stream("aac", rate=16000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 112, 64, "yuvj420p"
        cover.disposition = 0x400
        if with_video:
            video: Any = container.add_stream("libx264", rate=24, options={"crf": "12"})
            video.width, video.height, video.pix_fmt = 112, 64, "yuv420p"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_frame(99, 64, 112), format="rgb24")))
        container.mux(cover.encode())
        if with_video:
            for number in range(18):
                container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_frame(number, 64, 112), format="rgb24")))
            container.mux(video.encode())
    _, outcomes = read(path)
    if with_video:
        assert numbers(outcomes) == list(range(17))
    else:
        assert reject(outcomes) == "probe/cover_art"


def test_two_frames_in_one_millisecond_are_two_frames(read: Decode, tmp_path: Path) -> None:
    ticks = [number * 3750 for number in range(20)]
    ticks[7] = ticks[6] + 20  # 0.2 ms later, the same millisecond
    source = tmp_path / "source.mp4"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 112, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, 64, 112), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = stream_copy(source, tmp_path / "dup.mkv")
    with av.open(str(path)) as container:
        times = [p.pts for p in container.demux(video=0) if p.size]
    assert len(set(times)) == len(times) - 1
    assert numbers(read(path)[1]) == list(range(17))


def interlaced_clip(path: Path) -> Path:
    """A video whose frames hold the fields of two pictures, one above the other line by line."""
    pictures = [numbered_frame(number, 64, 112) for number in range(40)]
    woven = []
    for top, bottom in zip(pictures[::2], pictures[1::2], strict=True):
        woven.append(top.copy())
        woven[-1][1::2] = bottom[1::2]
    options = {"flags": "+ilme+ildct", "bf": "2"}
    return make_clip(path, frames=woven, fps=25, options=options, pix_fmt="yuv444p")


def comb(frames_THWC: np.ndarray) -> float:
    """How much neighboring lines differ, over lines two apart."""
    x_THWC = frames_THWC.astype(float)
    near, far = (np.abs(x_THWC[:, step:] - x_THWC[:, :-step]).mean() for step in (1, 2))
    return float(near / far)


def test_interlaced_video_is_skipped_kept_or_deinterlaced(read: Decode, tmp_path: Path) -> None:
    path = interlaced_clip(tmp_path / "interlaced.mp4")
    facts, outcomes = read(path)
    assert facts is not None and facts.interlaced and outcomes == [Skip(index=0, reason="interlaced")]
    (kept, *_), (woven, *_) = (read(path, policy=policy)[1] for policy in ("keep", "deinterlace"))
    assert isinstance(kept, Clip) and isinstance(woven, Clip)
    assert kept.window.pts == woven.window.pts and len(woven.frames_THWC) == 17
    assert comb(woven.frames_THWC) < 0.8 * comb(kept.frames_THWC)
    assert [read_number(frame[1::2]) for frame in woven.frames_THWC] == list(range(1, 35, 2)), (
        "the encoder's first field"
    )


class Marked:
    """A frame with another mark of whether it is interlaced."""

    def __init__(self, frame: Any, interlaced: bool) -> None:
        self._frame = frame
        self.interlaced_frame = interlaced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)


def test_several_frames_tell_whether_a_video_is_interlaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frames of a stream with fields may be progressive; later ones of a stream without fields are not read."""
    real = pyav_reader.decoded

    def probe(path: Path, first: int) -> bool:
        marked = lambda *args: (Marked(frame, number >= first) for number, frame in enumerate(real(*args)))  # noqa: E731
        monkeypatch.setattr(pyav_reader, "decoded", marked)
        with path.open("rb") as file:
            return pyav_reader.probe(file, 1 << 20, 60.0).interlaced

    woven, plain = interlaced_clip(tmp_path / "woven.mp4"), make_clip(tmp_path / "plain.mp4", 20)
    assert [probe(woven, first) for first in (0, 3, 19, 100)] == [True, True, True, False]
    assert [probe(plain, first) for first in (0, 3)] == [True, False]


def test_progressive_video_is_the_same_under_every_policy(read: Decode, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "progressive.mp4", 20)
    facts, (clip, _) = read(path)
    assert facts is not None and not facts.interlaced and isinstance(clip, Clip)
    for policy in ("keep", "deinterlace"):
        other = read(path, policy=policy)[1][0]
        assert isinstance(other, Clip) and np.array_equal(other.frames_THWC, clip.frames_THWC)


def with_box(path: Path, name: bytes, content: bytes) -> Path:
    """Append a box to the video sample entry of an MP4 whose ``moov`` is at its end."""
    data = path.read_bytes()
    parents, start, end = [], data.index(b"moov") - 4, len(data)
    position = start
    for parent, header in (
        (b"moov", 8),
        (b"trak", 8),
        (b"mdia", 8),
        (b"minf", 8),
        (b"stbl", 8),
        (b"stsd", 16),
        (None, 0),
    ):
        while parent is not None and data[position + 4 : position + 8] != parent:
            position += struct.unpack_from(">I", data, position)[0]
        parents.append(position)
        position += header
    end = parents[-1] + struct.unpack_from(">I", data, parents[-1])[0]
    box = struct.pack(">I4s", 8 + len(content), name) + content
    grown = bytearray(data[:end] + box + data[end:])
    for parent_start in parents:
        struct.pack_into(">I", grown, parent_start, struct.unpack_from(">I", data, parent_start)[0] + len(box))
    path.write_bytes(grown)
    return path


def test_a_clean_aperture_is_applied_and_recorded(read: Decode, tmp_path: Path) -> None:
    """96 of 112 columns, centered: 8 at each side go."""
    plain = make_clip(tmp_path / "plain.mp4", 20)
    cropped = with_box(make_clip(tmp_path / "clap.mp4", 20), b"clap", struct.pack(">8I", 96, 1, 64, 1, 0, 1, 0, 1))
    (_, (whole, _)), (facts, (clip, _)) = read(plain), read(cropped, (64, 96))
    assert facts is not None and (facts.crop, facts.width, facts.height) == ((0, 0, 8, 8), 96, 64)
    assert isinstance(whole, Clip) and isinstance(clip, Clip)
    assert np.array_equal(clip.frames_THWC, whole.frames_THWC[:, :, 8:-8])


def test_a_crop_of_matroska_is_applied_and_recorded(read: Decode) -> None:
    """The file crops 8 rows at the top and at the bottom of 112x64 pixels, which are three quarters as wide as high."""
    facts, outcomes = read(INPUTS / "crop.mkv", (48, 80))
    assert facts is not None and facts.crop == (8, 8, 0, 0)
    assert (facts.width, facts.height) == (84, 48)
    assert isinstance(outcomes[0], Clip)


@pytest.mark.parametrize(("profile", "outcome"), [(5, "probe/dolby_vision"), (8, "")])
def test_dolby_vision_is_recorded_and_profile_5_rejected(
    read: Decode, tmp_path: Path, profile: int, outcome: str
) -> None:
    path = make_clip(tmp_path / "dovi.mp4", 20, codec="libx265", options={"x265-params": "log-level=none"})
    configuration = struct.pack(">BBH", 1, 0, profile << 9 | 1 << 3 | 1 << 2 | 1) + bytes(20)
    path = with_box(path, b"dvcC" if profile < 8 else b"dvvC", configuration)
    facts, outcomes = read(path)
    assert facts is not None and facts.dolby_vision == profile
    assert reject(outcomes) == outcome if outcome else numbers(outcomes) == list(range(17))
    assert numbers(read(path, policy="keep")[1]) == list(range(17))

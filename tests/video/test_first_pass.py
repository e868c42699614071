"""The pass that probing begins and decoding continues gives the frames of a pass of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.video import pyav_reader, seeking
from pipeline.video.completeness import Packets
from pipeline.video.containers import open_container
from pipeline.video.pyav_reader import FirstPass
from tests.support.clips_maker import damage, make_clip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that were opened as containers."""
    files: list[Any] = []

    def counted(file: Any) -> Any:
        files.append(file)
        return open_container(file)

    monkeypatch.setattr(pyav_reader, "open_container", counted)
    return files


FILES: dict[str, tuple[str, dict[str, Any], int]] = {
    "a.mp4": ("libx264", {"options": {"bf": "2"}}, 1),
    "open_gop.mp4": ("libx264", {"options": {"bf": "2", "x264-params": "open-gop=1"}}, 1),
    "hevc.mp4": ("libx265", {"options": {"x265-params": "log-level=none"}}, 1),
    "a.mkv": ("libx264", {"options": {"bf": "2"}}, 1),
    "fragments.mp4": ("libx264", {"options": {"movflags": "frag_keyframe+empty_moov"}}, 1),
    "vp9.webm": ("libvpx-vp9", {}, 1),
    "a.ts": ("libx264", {"options": {"bf": "2"}}, 2),
    "a.avi": ("mpeg4", {"options": {"qscale": "2"}}, 2),
}


@pytest.mark.parametrize("name", FILES)
def test_one_container_serves_for_packets_and_frames_where_it_can_be_rewound(
    tmp_path: Path, opened: list[Any], name: str
) -> None:
    codec, options, opens = FILES[name]
    path = make_clip(tmp_path / name, 40, codec=codec, **options)
    with path.open("rb") as file, contextlib.closing(FirstPass(file)) as first_pass:
        facts = pyav_reader.probe(file, 1 << 20, 60.0, first_pass)
        file.seek(0)
        file.read(100)  # another reader of the file
        found = [(pts, frame.to_ndarray()) for pts, frame in seeking.frames(file, facts, facts.pts, first_pass)]
        assert len(opened) == opens
        assert first_pass.take_frames() is None, "they are read once"
        expected = [(pts, frame.to_ndarray()) for pts, frame in pyav_reader.frames(file, facts)]
        assert pyav_reader.probe(file, 1 << 20, 60.0) == facts
    assert [pts for pts, _ in found] == [pts for pts, _ in expected] == list(facts.pts)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


def test_a_rewind_that_leads_elsewhere_is_noticed(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", 20)
    real = pyav_reader.read_packets

    def elsewhere(*args: Any) -> Packets:
        packets = real(*args)
        assert packets.first is not None
        return dataclasses.replace(packets, first=packets.first._replace(position=1))

    monkeypatch.setattr(pyav_reader, "read_packets", elsewhere)
    with path.open("rb") as file, contextlib.closing(FirstPass(file)) as first_pass:
        facts = pyav_reader.probe(file, 1 << 20, 60.0, first_pass)
        assert len(list(seeking.frames(file, facts, facts.pts, first_pass))) == 20
    assert len(opened) == 2


def test_damage_in_the_first_pass_is_found_again_in_a_pass_of_its_own(tmp_path: Path, opened: list[Any]) -> None:
    path = make_clip(tmp_path / "a.mp4", 40, options={"g": "40", "bf": "0"})
    damage(path, 20)
    with path.open("rb") as file, contextlib.closing(FirstPass(file)) as first_pass:
        facts = pyav_reader.probe(file, 1 << 20, 60.0, first_pass)
        found = []
        with pytest.raises(av.error.InvalidDataError):
            for pts, _ in seeking.frames(file, facts, facts.pts, first_pass):
                found.append(pts)
        assert found == list(facts.pts[:20])
    assert len(opened) == 2

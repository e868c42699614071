"""Ranges of videos: which windows they hold, and that seeking decodes the same frames as a sequential pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import Rejected
from pipeline.recipe import Recipe, Run
from pipeline.video import pyav_reader, seeking
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.ranges import Range, in_decoding_order, positions_in_range, range_seconds, select_in_range
from pipeline.video.windows import Skip, VideoFacts, Window
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import damage, make_clip, numbered_frame, read_number
from tests.support.plain_clips import plain_facts

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
RECIPE = Recipe(vae="x", buckets=(Bucket(17, 64, 112),), micro_batch=(1,), windows="all")


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(RECIPE, Run(output="", vae="", sources=(), cpus=1))
    yield decoders
    decoders.close()


def decode(decoders: Decoders, path: Path, *ranges: Range | None) -> list[list[Outcome]]:
    """The outcomes of each range of a file, all decoded in one pass."""
    select = partial(select_in_range, recipe=RECIPE, geometry=GEOMETRY)
    found: list[list[Outcome]] = [[] for _ in ranges]
    with path.open("rb") as file:
        for number, (_, outcome) in decoders.clips_of_ranges(file.fileno(), ranges, [select] * len(ranges)):
            found[number].append(outcome)
    return found


def numbers(outcomes: list[Outcome]) -> list[list[int]]:
    return [[read_number(frame) for frame in o.frames_THWC] for o in outcomes if isinstance(o, Clip)]


@pytest.mark.parametrize(
    ("item_range", "unit", "expected"),
    [
        ((0, None), "seconds", (0, 60)),
        ((0.5, 1.0), "seconds", (12, 24)),
        ((0.501, 1.001), "seconds", (12, 24)),  # rounded to a millisecond
        ((0.51, 1.02), "seconds", (13, 25)),
        ((1.0, 99.0), "seconds", (24, 60)),
        ((10, 20), "frames", (10, 20)),
        ((10, None), "frames", (10, 60)),
        ((50, 99), "frames", (50, 60)),
        (None, "seconds", (0, 60)),
    ],
)
def test_a_frame_belongs_to_the_range_in_which_it_begins(item_range: Any, unit: Any, expected: tuple[int, int]) -> None:
    assert positions_in_range(plain_facts(60, 64, 112), item_range, unit) == expected


@pytest.mark.parametrize("item_range", [(3.0, 4.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_a_range_without_frames_is_rejected(item_range: Range) -> None:
    with pytest.raises(Rejected, match="no frame lies between seconds") as caught:
        positions_in_range(plain_facts(60, 64, 112), item_range, "seconds")
    assert caught.value.reject.name == "probe/bad_range"


def test_the_columns_of_a_range_are_seconds_inside_the_video() -> None:
    facts = plain_facts(60, 64, 112)
    assert range_seconds(facts, (1.0, None), "seconds") == (1.0, 2.5)
    assert range_seconds(facts, (1.0, 9.0), "seconds") == (1.0, 2.5)
    assert range_seconds(facts, (12, 24), "frames") == (0.5, 1.0)
    assert range_seconds(facts, (12, None), "frames") == (0.5, 2.5)
    assert range_seconds(None, (1.0, None), "seconds") == (1.0, None)
    assert range_seconds(None, (12, 24), "frames") == (None, None)


def test_windows_stay_inside_their_range_at_any_rate() -> None:
    facts = plain_facts(120, 64, 112)
    for fps in (None, 24.0, 20.0, 12.0):
        recipe = Recipe(vae="x", buckets=(Bucket(17, 64, 112),), fps=fps, windows="all", remainder="shorten")
        windows = select_in_range(facts, (1.0, 3.0), recipe, GEOMETRY)
        used = [pts for window in windows if isinstance(window, Window) for pts in window.pts]
        assert used and min(used) == 24 and max(used) < 72
        assert all(w.start_s >= 1.0 and w.end_s <= 3.0 for w in windows if isinstance(w, Window))


def test_ranges_are_mixed_in_the_order_of_their_frames() -> None:
    facts = plain_facts(120, 64, 112)
    late, early = (select_in_range(facts, r, RECIPE, GEOMETRY) for r in ((2.0, 4.0), (0.0, 1.0)))
    order = [(number, window.index) for number, window in in_decoding_order([late, early])]
    assert order == [(1, 0), (1, 1), (0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
def test_several_ranges_of_a_video_are_decoded_in_one_pass(decoders: Decoders, tmp_path: Path, name: str) -> None:
    path = make_clip(tmp_path / name, 200, options={"bf": "2"})
    found = decode(decoders, path, (100 / 24, 120 / 24), (0.0, 20 / 24), (110 / 24, 150 / 24), (9.0, 10.0), None)
    expected = [[100], [0], [110, 127], [], list(range(0, 180, 17))]
    assert [numbers(outcomes) for outcomes in found] == [
        [list(range(start, start + 17)) for start in starts] for starts in expected
    ]
    assert [type(o) for o in found[0]] == [Clip, Skip]
    (outside,) = found[3]
    assert isinstance(outside, RejectedWindow) and outside.reject.name == "probe/bad_range"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_range_that_ends_before_damage_keeps_its_clips(decoders: Decoders, tmp_path: Path, name: str) -> None:
    """Also if it begins after the window that is damaged, in a file that cannot be decoded from behind the damage on."""
    path = make_clip(tmp_path / name, 60)
    damage(path, 30)
    long = (Bucket(34, 64, 112), Bucket(17, 64, 112))
    select = partial(select_in_range, recipe=replace(RECIPE, buckets=long), geometry=GEOMETRY)
    ranges = [(0.0, None), (4 / 24, 21 / 24)]
    with path.open("rb") as file:
        found = list(decoders.clips_of_ranges(file.fileno(), ranges, [select] * 2))
    assert [isinstance(outcome, Clip) for number, (_, outcome) in found if number == 1] == [True]
    assert isinstance(next(outcome for number, (_, outcome) in found if number == 0), RejectedWindow)


def test_damage_in_one_range_does_not_cost_another(decoders: Decoders, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 200)
    damage(path, 60)
    before, inside, after = decode(decoders, path, (0.0, 0.8), (50 / 24, 80 / 24), (150 / 24, 170 / 24))
    assert numbers(before) == [list(range(17))] and numbers(after) == [list(range(150, 167))]
    assert not numbers(inside) and {o.reject.stage for o in inside if isinstance(o, RejectedWindow)} == {"decode"}


def test_a_file_that_cannot_be_probed_rejects_every_range(decoders: Decoders, tmp_path: Path) -> None:
    path = tmp_path / "zeros.mp4"
    path.write_bytes(bytes(5000))
    for (outcome,) in decode(decoders, path, (0.0, 1.0), (1.0, 2.0)):
        assert isinstance(outcome, RejectedWindow) and outcome.reject.reason == "unknown_format"


def cut(source: Path, path: Path, num_frames: int) -> Path:
    """Copy the packets of a video to times ``num_frames`` earlier: an edit list hides those before the cut."""
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.pts is not None:
                shift = int(num_frames / 24 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                b.mux(packet)
    return path


VFR = [i * 40 + 10 * (i % 3) for i in range(160)]
X264 = {"bf": "3", "g": "24"}
SEEKS: list[tuple[str, str, dict[str, Any]]] = [
    ("closed.mp4", "libx264", {"options": X264}),
    ("open.mp4", "libx264", {"options": X264 | {"x264-params": "open-gop=1:ref=4:bframes=5"}}),
    ("open.mkv", "libx264", {"options": X264 | {"x264-params": "open-gop=1:b-pyramid=strict:ref=8"}}),
    ("refresh.mp4", "libx264", {"options": X264 | {"x264-params": "intra-refresh=1"}}),
    ("open_h265.mp4", "libx265", {"options": {"x265-params": "log-level=none:keyint=24:min-keyint=24:open-gop=1"}}),
    ("vfr.mkv", "libx264", {"options": X264, "pts": VFR}),
    ("vfr.mp4", "libx264", {"options": X264, "pts": VFR}),
    ("edits.mp4", "libx264", {"options": X264}),
    ("h264.ts", "libx264", {"options": X264}),
    ("mpeg4.mp4", "mpeg4", {"options": {"g": "24", "bf": "2", "qscale": "3"}}),
    ("vp9.webm", "libvpx-vp9", {"options": {"g": "24", "deadline": "realtime", "cpu-used": "8"}}),
]
SEQUENTIAL = ("refresh.mp4", "h264.ts")
"""Files without a frame from which decoding may start alone, or whose container has no index."""


@pytest.mark.parametrize(("name", "codec", "options"), SEEKS, ids=[case[0] for case in SEEKS])
def test_seeking_gives_the_frames_of_a_sequential_pass(
    tmp_path: Path, name: str, codec: str, options: dict[str, Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 112, 3), dtype=np.uint8)
    pictures = [np.roll(noise, 2 * i, axis=1) // 2 + numbered_frame(i, 64, 112) // 2 for i in range(160)]
    path = make_clip(tmp_path / name, frames=pictures, codec=codec, **options)
    if name == "edits.mp4":
        path = cut(path, tmp_path / "cut.mp4", 30)
    with path.open("rb") as file, mock.patch.object(seeking, "MIN_SKIPPED_FRAMES", 8):
        facts = pyav_reader.probe(file, 1 << 20, 1e6)
        expected = {pts: frame.to_ndarray() for pts, frame in pyav_reader.frames(file, facts)}
        fell_back = False
        for starts in ((60,), (5, 100), (34, 75, 121), (11, 52, 53, 95)):
            wanted = sorted({pts for start in starts for pts in facts.pts[start : start + 5]})
            with mock.patch.object(pyav_reader, "frames", wraps=pyav_reader.frames) as sequential:
                found = {pts: frame.to_ndarray() for pts, frame in seeking.frames(file, facts, wanted)}
            assert all(np.array_equal(found[pts], expected[pts]) for pts in wanted)
            fell_back |= sequential.called
            assert sequential.called or len(found) < len(expected)
        assert fell_back == (name in SEQUENTIAL)


def test_passes_skip_what_is_far_and_keep_what_is_near() -> None:
    facts = VideoFacts(
        **{name: getattr(plain_facts(400, 64, 112), name) for name in VideoFacts.__slots__}
        | {"container": "mov", "key_frames": tuple((k, k - 2) for k in range(0, 400, 50)), "time_base": Fraction(1, 24)}
    )

    def passes(*wanted: int) -> list[tuple[int, int]]:
        return [(p.key_pts, p.stop_pts) for p in seeking.plan_passes(facts, wanted)]

    assert passes(*range(400)) == passes(*range(0, 400, 10)) == passes(0, 17, 34) == []
    assert passes(60, 61, 120) == [(50, 61), (100, 120)]
    assert passes(5, 120) == [(0, 5), (100, 120)]
    assert passes(60, 75, 101) == [(50, 101)]

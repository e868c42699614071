"""Windows of bucket groups: each group lays its own, and the frames of a video are decoded once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video import decode_session
from pipeline.video.decode_session import Session
from pipeline.video.decoders import Decoders, _Video
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.pictures.reading import upright_frames
from pipeline.video.placement import CENTER, CropPosition, crop_position, fit_to_bucket
from pipeline.video.ranges import in_decoding_order, select_in_range
from pipeline.video.resize import resize_frame
from pipeline.video.windows import Skip, VideoFacts, Window, select_windows
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import damage, make_clip
from tests.support.plain_clips import plain_facts

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
SHORT, LONG = Bucket(17, 32, 56, "short"), Bucket(34, 64, 112, "long")
GROUPS = Recipe(vae="x", buckets=(SHORT, LONG), micro_batch=(1,), windows="all")


def summary(windows: list[Window | Skip]) -> list[tuple[str, int, int | str]]:
    """Group, index, and first frame or reason of each window."""
    return [(w.group, w.index, w.reason if isinstance(w, Skip) else w.pts[0]) for w in windows]


def test_each_group_lays_windows_by_its_own_buckets() -> None:
    facts = plain_facts(40, 128, 224)
    tick = facts.pts[1]
    assert summary(select_windows(facts, GROUPS, GEOMETRY)) == [
        ("short", 0, 0),
        ("short", 1, 17 * tick),
        ("short", 2, "remainder"),
        ("long", 0, 0),
        ("long", 1, "remainder"),
    ]
    assert summary(select_windows(plain_facts(20, 40, 70), GROUPS, GEOMETRY)) == [
        ("short", 0, 0),
        ("short", 1, "remainder"),
        ("long", 0, "too_small"),
    ]
    interlaced = dataclasses.replace(facts, interlaced=True)
    assert summary(select_windows(interlaced, GROUPS, GEOMETRY)) == [
        ("short", 0, "interlaced"),
        ("long", 0, "interlaced"),
    ]


def test_a_scene_may_be_cut_in_one_group_only() -> None:
    facts = dataclasses.replace(plain_facts(60, 128, 224), scenes=((0, 20), (20, 60)))
    tick = facts.pts[1]
    recipe = dataclasses.replace(GROUPS, windows="first", scenes="content")
    selected = select_in_range(facts, None, recipe, GEOMETRY)
    assert summary(selected) == [
        ("short", 0, 0),
        ("short", 1, 20 * tick),
        ("long", 0, "cut"),
        ("long", 1, 20 * tick),
    ]
    assert [window.scene and window.scene.number for window in selected] == [0, 1, 0, 1]


def test_the_same_size_in_two_groups_makes_two_windows() -> None:
    buckets = (SHORT, dataclasses.replace(SHORT, group="again"))
    recipe = Recipe(vae="x", buckets=buckets, micro_batch=(4, 2))
    windows = select_windows(plain_facts(17, 128, 224), recipe, GEOMETRY)
    assert [window.group for window in windows] == ["short", "again"]
    assert recipe.clips_per_call == {buckets[0]: 4, buckets[1]: 2}


def test_windows_of_all_groups_are_decoded_in_order_of_time() -> None:
    windows = select_windows(plain_facts(70, 128, 224), GROUPS, GEOMETRY)
    order = [window for _, window in in_decoding_order([windows])]
    ends = [window.pts[-1] for window in order if isinstance(window, Window)]
    assert ends == sorted(ends) and len(order) == len(windows)
    for group in ("short", "long"):
        assert [window.index for window in order if window.group == group] == list(
            range(sum(window.group == group for window in windows))
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("groups") / "a.mp4", 76, size=(72, 144))


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    found = Decoders(GROUPS, Run(output="", vae="", sources=(), cpus=1))
    yield found
    found.close()


def decode(path: Path, decoders: Decoders, recipe: Recipe, crop: CropPosition = CENTER) -> list[Outcome]:
    with path.open("rb") as file:
        select = lambda facts: select_windows(facts, recipe, GEOMETRY, crop=crop)  # noqa: E731
        return [outcome for _, outcome in decoders.clips(file.fileno(), select)]


def group_of(outcome: Outcome) -> str:
    return (outcome.window if isinstance(outcome, Clip) else outcome).group


def test_clips_of_a_group_are_those_of_the_group_alone(clip: Path, decoders: Decoders) -> None:
    together = decode(clip, decoders, GROUPS)
    for bucket in (SHORT, LONG):
        alone = decode(clip, decoders, dataclasses.replace(GROUPS, buckets=(bucket,), micro_batch=(1,)))
        clips = [o for o in together if isinstance(o, Clip) and o.window.group == bucket.group]
        expected = [o for o in alone if isinstance(o, Clip)]
        assert len(clips) == len(expected) >= 2
        for ours, theirs in zip(clips, expected, strict=True):
            assert ours.window == theirs.window
            np.testing.assert_array_equal(ours.frames_THWC, theirs.frames_THWC)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_damage_costs_a_group_no_more_than_in_a_job_of_its_own(tmp_path: Path, decoders: Decoders, name: str) -> None:
    """Frame 30 is in the first long window, which begins with the first short one but ends later."""
    path = make_clip(tmp_path / name, 76, size=(72, 144), options={"g": "76", "bf": "0"})
    damage(path, 30)
    together = decode(path, decoders, dataclasses.replace(GROUPS, buckets=(LONG, SHORT)))
    assert any(isinstance(o, Clip) for o in together) and any(isinstance(o, RejectedWindow) for o in together)
    for bucket in (SHORT, LONG):
        alone = decode(path, decoders, dataclasses.replace(GROUPS, buckets=(bucket,), micro_batch=(1,)))
        found = [type(o).__name__ for o in together if group_of(o) == bucket.group]
        assert found == [type(o).__name__ for o in alone], bucket


def test_a_frame_that_several_groups_need_is_decoded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counted(*args: object, **options: object) -> Iterator[object]:
        for pts, frame in upright_frames(*args, **options):  # type: ignore[arg-type]
            decoded.append(pts)
            yield pts, frame

    monkeypatch.setattr(decode_session, "upright_frames", counted)

    class InThisProcess:
        """A decoding child without its process."""

        session = Session("pyav", resize_frame)

        def request(self, request: dict[str, object], *fds: int) -> tuple[dict[str, object], bytes]:
            import os

            operation = {"open": "open", "select": "select", "next": "next"}[str(request["op"])]
            reply, files = getattr(self.session, operation)(request, [os.dup(fd) for fd in fds])
            content = b""
            for fd in files:
                with os.fdopen(fd, "rb") as file:
                    file.seek(0)
                    content = file.read()
            return reply, content

    with clip.open("rb") as file:
        select = lambda facts, _: select_windows(facts, GROUPS, GEOMETRY)  # noqa: E731
        limits = {"max_pixels": 10**6, "max_duration_s": 60.0}
        video = _Video(file.fileno(), [None], [select], GROUPS, limits)
        outcomes = [outcome for _, (_, outcome) in video.outcomes(InThisProcess())]  # type: ignore[arg-type]
    assert sum(isinstance(outcome, Clip) for outcome in outcomes) == 4 + 2
    assert len(decoded) == len(set(decoded)) == 68, "76 frames, of which the last 8 are in no window"


def test_crops_are_at_the_center_the_top_or_a_place_that_follows_from_the_item() -> None:
    bucket = Bucket(17, 32, 56)
    tall, wide = (56, 200), (400, 32)  # width, height
    assert fit_to_bucket(*tall, bucket) == fit_to_bucket(*tall, bucket, CENTER)
    assert fit_to_bucket(*tall, bucket).crop_top == 84 and fit_to_bucket(*wide, bucket).crop_left == 172
    top = crop_position(dataclasses.replace(GROUPS, crop="top"), "s", 0, "k")
    assert fit_to_bucket(*tall, bucket, top).crop_top == 0
    assert fit_to_bucket(*wide, bucket, top).crop_left == 172, "sides are cropped evenly"
    drawn = dataclasses.replace(GROUPS, crop="random", crop_seed=1)
    places = [crop_position(drawn, "source", number, f"{number}.mp4") for number in range(400)]
    assert places == [crop_position(drawn, "source", number, f"{number}.mp4") for number in range(400)]
    offsets = [fit_to_bucket(*tall, bucket, place).crop_top for place in places]
    assert min(offsets) >= 0 and max(offsets) <= 200 - 32 and len(set(offsets)) > 100
    assert 70 < np.mean(offsets) < 98, "evenly distributed"
    other = dataclasses.replace(drawn, crop_seed=2)
    assert crop_position(other, "source", 0, "0.mp4") != places[0]
    edge = CropPosition(1 - 2**-32, 1 - 2**-32)
    assert fit_to_bucket(*tall, bucket, edge).crop_top == 200 - 32, "the last offset, not one beyond"


def test_a_crop_keeps_the_pixels_that_its_columns_name(clip: Path, decoders: Decoders) -> None:
    bucket = Bucket(17, 72, 72)  # of frames of 72x144: nothing is scaled
    recipe = Recipe(vae="x", buckets=(bucket,), micro_batch=(1,))
    with mock.patch.object(decoders, "_recipe", recipe):
        whole = decode(clip, decoders, dataclasses.replace(recipe, buckets=(Bucket(17, 72, 144),)))
        assert isinstance(whole[0], Clip)
        for share, left in ((0.0, 0), (0.999, 72), (None, 36)):
            (cropped,) = decode(clip, decoders, recipe, CropPosition(None, share))
            assert isinstance(cropped, Clip) and cropped.window.placement.crop_left == left
            np.testing.assert_array_equal(cropped.frames_THWC, whole[0].frames_THWC[:, :, left : left + 72])


def test_a_video_is_cropped_in_upright_pixels() -> None:
    facts: VideoFacts = dataclasses.replace(plain_facts(17, 64, 200), rotation=90)
    recipe = Recipe(vae="x", buckets=(Bucket(17, 64, 64),), micro_batch=(1,))
    (window,) = select_windows(facts, recipe, GEOMETRY, crop=CropPosition(down=0.0))
    assert isinstance(window, Window) and window.placement.crop_top == 0 and window.placement.scaled_height == 200

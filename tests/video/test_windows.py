"""Which windows are selected, and into which bucket they go."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe
from pipeline.video.placement import choose_bucket, fit_to_bucket
from pipeline.video.windows import Skip, VideoFacts, Window, select_windows
from stvae.geometry import multiples, plain_geometry

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
SQUARE, WIDE, LONG = Bucket(17, 128, 128), Bucket(17, 128, 224), Bucket(51, 128, 224)


def video(
    num_frames: int = 60, fps: int | Fraction = 24, width: int = 640, height: int = 360, **changes: Any
) -> VideoFacts:
    time_base = Fraction(1, 90000)
    pts = tuple(round(i / Fraction(fps) / time_base) for i in range(num_frames + 1))
    facts = VideoFacts(
        container="mov",
        codec="h264",
        coded_width=width,
        coded_height=height,
        rotation=0,
        sample_aspect=Fraction(1),
        time_base=time_base,
        pts=pts[:-1],
        end_pts=pts[-1],
        is_image=False,
        hdr=None,
        decord_refusal=None,
    )
    return dataclasses.replace(facts, **changes)


def recipe_with(*buckets: Bucket, **changes: Any) -> Recipe:
    return Recipe(vae="x", buckets=buckets, micro_batch=(1,) * len(buckets), **changes)


def select(facts: VideoFacts, recipe: Recipe) -> list[Window | Skip]:
    return select_windows(facts, recipe, GEOMETRY)


def starts(windows: list[Window | Skip]) -> list[int | str]:
    """Number of the first frame of each window of a 24 fps video, or the reason of a skip."""
    return [w.reason if isinstance(w, Skip) else round(w.start_s * 24) for w in windows]


def bucket_of(facts: VideoFacts, recipe: Recipe) -> Bucket | str:
    return choose_bucket(facts.width, facts.height, len(facts.pts), recipe.buckets, recipe, GEOMETRY)


def test_an_item_goes_to_the_nearest_aspect_ratio_then_to_the_most_frames() -> None:
    recipe = recipe_with(SQUARE, WIDE, LONG)
    assert bucket_of(video(60), recipe) == LONG
    assert bucket_of(video(50), recipe) == WIDE
    assert bucket_of(video(60, width=400, height=360), recipe) == SQUARE


def test_no_bucket_is_used_that_would_enlarge_beyond_the_limit() -> None:
    small = video(width=200, height=150)
    assert bucket_of(small, recipe_with(WIDE)) == "too_small"
    assert bucket_of(small, recipe_with(SQUARE, WIDE)) == SQUARE
    assert bucket_of(small, recipe_with(WIDE, max_upscale=1.2)) == WIDE


def test_rotation_and_sample_aspect_count_for_the_bucket() -> None:
    turned = video(rotation=90)
    assert (turned.width, turned.height) == (360, 640)
    stretched = video(sample_aspect=Fraction(2))
    assert (stretched.width, stretched.height) == (1280, 360)
    both = video(rotation=270, sample_aspect=Fraction(2))
    assert (both.width, both.height) == (360, 1280)


def test_first_takes_one_window_and_all_takes_them_without_overlap() -> None:
    assert starts(select(video(60), recipe_with(WIDE))) == [0]
    assert starts(select(video(60), recipe_with(WIDE, windows="all"))) == [0, 17, 34, "remainder"]
    assert starts(select(video(51), recipe_with(WIDE, windows="all"))) == [0, 17, 34]


def test_stride_starts_a_window_every_stride_frames() -> None:
    assert starts(select(video(40), recipe_with(WIDE, windows="stride", stride_frames=10))) == [0, 10, 20, "remainder"]
    assert starts(select(video(37), recipe_with(WIDE, windows="stride", stride_frames=10))) == [0, 10, 20]
    assert starts(select(video(60), recipe_with(WIDE, windows="stride", stride_frames=30))) == [0, 30]


def test_a_remainder_is_kept_as_whole_chunks_where_the_recipe_says_so() -> None:
    recipe = recipe_with(LONG, windows="all", remainder="shorten")
    windows = select(video(100), recipe)
    assert [w.bucket.num_frames for w in windows if isinstance(w, Window)] == [51, 34]
    short = select(video(40), recipe)
    assert [w.bucket.num_frames for w in short if isinstance(w, Window)] == [34]
    assert starts(select(video(16), recipe)) == ["too_short"]


def test_a_target_rate_picks_the_frame_shown_at_each_moment() -> None:
    (window,) = select(video(60, fps=30), recipe_with(WIDE, fps=24.0))
    assert isinstance(window, Window)
    facts = video(60, fps=30)
    assert [facts.pts.index(p) for p in window.pts] == [int(k * 30 / 24) for k in range(17)]
    assert window.fps == 24.0 and window.frame_stride is None


def test_time_bases_of_a_millisecond_do_not_stutter() -> None:
    milliseconds = video(
        60, time_base=Fraction(1, 1000), pts=tuple(round(i * 1000 / 24) for i in range(60)), end_pts=2500
    )
    (window,) = select(milliseconds, recipe_with(WIDE, fps=24.0))
    assert isinstance(window, Window)
    assert window.pts == milliseconds.pts[:17]
    (native,) = select(milliseconds, recipe_with(WIDE))
    assert isinstance(native, Window) and native.fps == 24.0


@pytest.mark.parametrize(
    ("fps", "expected"), [(Fraction(24000, 1001), 23.976023976), (Fraction(30000, 1001), 29.97002997), (25, 25.0)]
)
def test_the_true_rate_is_recorded(fps: Fraction, expected: float) -> None:
    (window,) = select(video(60, fps=fps), recipe_with(WIDE))
    assert isinstance(window, Window) and window.fps == pytest.approx(expected)
    assert video(60, fps=fps).fps == pytest.approx(expected)


def test_variable_rates_follow_presentation_time() -> None:
    pts = tuple([0, 90000, *range(93000, 93000 + 58 * 3000, 3000)])  # the first frame is shown for a second
    facts = video(60, pts=pts, end_pts=pts[-1] + 3000)
    (window,) = select(facts, recipe_with(WIDE, fps=30.0, max_repeats=1.0))
    assert isinstance(window, Window) and set(window.pts) == {0}
    assert starts(select(facts, recipe_with(WIDE, fps=30.0))) == ["repeated_frames"]


def test_a_video_far_below_the_target_rate_is_skipped_rather_than_stuttering() -> None:
    assert starts(select(video(60, fps=12), recipe_with(WIDE, fps=24.0))) == ["repeated_frames"]
    assert starts(select(video(60, fps=Fraction(24000, 1001)), recipe_with(WIDE, fps=24.0))) == [0]


def test_an_image_is_a_video_of_one_frame() -> None:
    image = video(1, is_image=True)
    assert starts(select(image, recipe_with(WIDE))) == ["too_short"]
    (window,) = select(image, recipe_with(WIDE, Bucket(1, 128, 224), fps=24.0))
    assert isinstance(window, Window) and window.fps is None and window.bucket.num_frames == 1


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_a_placement_covers_its_bucket_and_is_centred(width: int, height: int) -> None:
    p = fit_to_bucket(width, height, WIDE)
    assert p.scaled_height >= WIDE.height and p.scaled_width >= WIDE.width
    assert p.scaled_height == WIDE.height or p.scaled_width == WIDE.width
    assert 0 <= p.scaled_height - WIDE.height - 2 * p.crop_top <= 1
    assert 0 <= p.scaled_width - WIDE.width - 2 * p.crop_left <= 1


@given(
    num_frames=st.integers(1, 200),
    windows=st.sampled_from(["first", "all", "stride"]),
    stride=st.integers(1, 60),
    remainder=st.sampled_from(["skip", "shorten"]),
    fps=st.sampled_from([None, 8.0, 24.0, 30.0]),
)
def test_windows_are_numbered_ordered_and_within_the_video(
    num_frames: int, windows: Any, stride: int, remainder: Any, fps: float | None
) -> None:
    stride_frames = stride if windows == "stride" else None
    recipe = recipe_with(WIDE, LONG, windows=windows, stride_frames=stride_frames, remainder=remainder, fps=fps)
    facts = video(num_frames)
    selected = select(facts, recipe)
    assert [w.index for w in selected] == list(range(len(selected))) and selected
    for window in selected:
        if isinstance(window, Window):
            assert set(window.pts) <= set(facts.pts) and list(window.pts) == sorted(window.pts)
            assert len(window.pts) == window.bucket.num_frames
            assert window.bucket == window.filled or (remainder == "shorten" and len(window.pts) % 17 == 0)
            assert 0 <= window.start_s < window.end_s <= facts.duration_s + 0.13

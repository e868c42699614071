"""Sizes, chunks and padding of a VAE as integer arithmetic."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvae.geometry import ShapeError, SizeRule, multiples, plain_geometry
from tests.support.golden import GOLDEN

OPEN_SORA = plain_geometry(8, 4, multiples(1), chunk_frames=17)
REFERENCE = json.loads((GOLDEN / "opensora-v12-full-shapes.json").read_text())["latent_size"]


@pytest.mark.parametrize("num_frames", [int(t) for t in REFERENCE])
def test_latent_size_equals_that_of_the_reference(num_frames: int) -> None:
    assert list(OPEN_SORA.latent_size((num_frames, 480, 848))) == REFERENCE[str(num_frames)]


@given(st.integers(1, 500))
def test_chunks_hold_every_frame_once(num_frames: int) -> None:
    chunks = OPEN_SORA.chunks(num_frames)
    assert sum(chunks) == num_frames
    assert all(n == 17 for n in chunks[:-1]) and 1 <= chunks[-1] <= 17


@given(st.integers(0, 500))
def test_the_largest_whole_length_is_whole_chunks_and_the_most_that_fit(num_frames: int) -> None:
    kept = OPEN_SORA.largest_whole_length(num_frames)
    assert kept % 17 == 0 and kept <= num_frames < kept + 17


def test_zero_frames_fill_the_first_group_of_a_chunk() -> None:
    assert [OPEN_SORA.pad_frames(t) for t in (1, 4, 5, 16, 17, 34)] == [3, 0, 3, 0, 3, 3]


def test_a_size_that_does_not_fit_names_the_nearest_that_does() -> None:
    with pytest.raises(ShapeError, match="width must be a multiple of 8, got 854; the nearest that fits is 856"):
        OPEN_SORA.latent_size((17, 480, 854))
    with pytest.raises(ShapeError, match="frames must be at least 1, got 0; the nearest that fits is 1"):
        OPEN_SORA.latent_size((0, 480, 848))


def test_every_input_frame_belongs_to_one_latent_frame() -> None:
    assert OPEN_SORA.covered_frames(17) == [(0, 1), (1, 5), (5, 9), (9, 13), (13, 17)]
    assert OPEN_SORA.covered_frames(22)[5:] == [(17, 18), (18, 22)]
    causal = plain_geometry(8, 4, SizeRule(start=1, step=4))
    assert causal.covered_frames(9) == [(0, 1), (1, 5), (5, 9)] and causal.pad_frames(9) == 3


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 200), st.none() | st.integers(0, 5))
def test_the_nearest_size_fits_and_no_other_is_nearer(start: int, step: int, size: int, steps: int | None) -> None:
    rule = SizeRule(start=start, step=step, largest=None if steps is None else start + steps * step)
    fitting = [n for n in range(start, 300, step) if rule.largest is None or n <= rule.largest]
    assert all(rule.fits(n) == (n in fitting) for n in range(250))
    assert rule.nearest(size) == min(fitting, key=lambda n: (abs(n - size), n))
    assert rule.largest_up_to(size) == max((n for n in fitting if n <= size), default=0)


@given(st.integers(0, 200))
def test_one_frame_may_fit_beside_a_rule(size: int) -> None:
    rule = SizeRule(start=5, step=17, or_one=True)
    fitting = [1, *range(5, 300, 17)]
    assert str(rule) == "1 or 17n+5" and rule.fits(size) == (size in fitting)
    assert rule.nearest(size) == min(fitting, key=lambda n: (abs(n - size), n))
    assert rule.largest_up_to(size) == max((n for n in fitting if n <= size), default=0)


@given(st.integers(0, 20))
def test_the_last_chunk_of_a_clip_may_have_to_be_short(chunks: int) -> None:
    geometry = plain_geometry(16, 4, SizeRule(start=5, step=17, or_one=True), chunk_frames=17)
    num_frames = 17 * chunks + 5
    assert geometry.latent_frames(num_frames) == len(geometry.covered_frames(num_frames)) == 5 * chunks + 2
    assert geometry.largest_whole_length(num_frames + 16) == num_frames

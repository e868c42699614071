from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvae.geometry import ShapeError, multiples, plain_geometry
from tests.conftest import GOLDEN

OPEN_SORA = plain_geometry(8, 4, multiples(1), chunk_frames=17)
REFERENCE = json.loads((GOLDEN / "opensora-v12-full-shapes.json").read_text())["latent_size"]


@pytest.mark.parametrize("num_frames", [int(t) for t in REFERENCE])
def test_latent_size_equals_the_references(num_frames: int) -> None:
    assert list(OPEN_SORA.latent_size((num_frames, 480, 848))) == REFERENCE[str(num_frames)]


@given(st.integers(1, 500))
def test_chunks_hold_every_frame_once(num_frames: int) -> None:
    chunks = OPEN_SORA.chunks(num_frames)
    assert sum(chunks) == num_frames
    assert all(n == 17 for n in chunks[:-1]) and 1 <= chunks[-1] <= 17


@given(st.integers(0, 500))
def test_rule_frames_are_whole_chunks_and_as_many_as_fit(num_frames: int) -> None:
    kept = OPEN_SORA.rule_frames(num_frames)
    assert kept % 17 == 0 and kept <= num_frames < kept + 17


def test_zero_frames_fill_the_first_group_of_a_chunk() -> None:
    assert [OPEN_SORA.pad_frames(t) for t in (1, 4, 5, 16, 17, 34)] == [3, 0, 3, 0, 3, 3]


def test_a_size_that_does_not_fit_names_the_nearest_that_does() -> None:
    with pytest.raises(ShapeError, match="width must be a multiple of 8, got 854; the nearest that fits is 856"):
        OPEN_SORA.latent_size((17, 480, 854))
    with pytest.raises(ShapeError, match="at least 1 frame"):
        OPEN_SORA.latent_size((0, 480, 848))

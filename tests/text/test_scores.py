"""Variants of captions with scores and camera motion."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.text.captions.scores import CaptionHandling, NumberCheck, Scores, append_scores, variants

BOTH = Scores(aesthetic=5.5, motion=10)


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        (Scores(), "A dog."),
        (BOTH, "A dog. [aesthetic score: 5.5, motion score: 10.0]"),
        (Scores(motion=0.06), "A dog. [motion score: 0.1]"),
        (Scores(camera="pan_right"), "A dog. Camera motion: pan right."),
        (Scores(aesthetic=4, camera="static"), "A dog. Camera motion: static. [aesthetic score: 4.0]"),
    ],
)
def test_scores_follow_the_caption(scores: Scores, text: str) -> None:
    assert append_scores("A dog.", scores) == text


def test_every_combination_has_its_probability() -> None:
    assert [(text, pytest.approx(weight)) for text, weight in variants("A dog.", BOTH)] == [
        ("A dog. [aesthetic score: 5.5, motion score: 10.0]", 0.64),
        ("A dog. [aesthetic score: 5.5]", 0.16),
        ("A dog. [motion score: 10.0]", 0.16),
        ("A dog.", 0.04),
    ]


def test_cleaning_comes_after_the_scores() -> None:
    texts = [text for text, _ in variants("A Dog.", BOTH, clean="open-sora")]
    assert texts[0] == "a dog. aesthetic score: 5.5, motion score: 10.0" and texts[-1] == "a dog."


def test_forms_that_never_occur_are_left_out() -> None:
    assert variants("A dog.", BOTH, drop_probability=0) == [("A dog. [aesthetic score: 5.5, motion score: 10.0]", 1)]
    assert variants("A dog.", BOTH, drop_probability=1) == [("A dog.", 1)]
    assert variants(" ", BOTH) == [("", 1)]


@given(
    st.text(max_size=20),
    st.builds(
        Scores,
        aesthetic=st.none() | st.floats(0, 10),
        motion=st.none() | st.floats(0, 100),
        camera=st.none() | st.sampled_from(["static", "zoom_in"]),
    ),
    st.floats(0, 1),
)
def test_weights_add_up_and_texts_differ(caption: str, scores: Scores, drop_probability: float) -> None:
    forms = variants(caption, scores, drop_probability=drop_probability)
    assert math.isclose(sum(weight for _, weight in forms), 1) and all(weight > 0 for _, weight in forms)
    assert len({text for text, _ in forms}) == len(forms) <= 4


@pytest.mark.parametrize("values", [["good", "bad"], ["n/a", None], [None, "n/a", math.nan], ["", [4]]])
def test_a_column_of_scores_without_one_number_is_an_error(values: list[object]) -> None:
    check = NumberCheck(["flow", "aes"])
    for value in values:
        check.add({"aes": value, "flow": None})
    with pytest.raises(ConfigError, match=r"the column 'aes' has no numbers, for example .*; scores are numbers"):
        check.end()


@pytest.mark.parametrize("values", [[], [None], [math.nan, None], ["n/a", "5.5"], [4, "bad"]])
def test_a_column_of_scores_may_lack_some(values: list[object]) -> None:
    check = NumberCheck(["aes"])
    for value in values:
        check.add({"aes": value})
    check.end()


def test_columns_of_samples_give_the_scores() -> None:
    handling = CaptionHandling(aesthetic_column="aes", motion_column="flow", camera_column="cmotion")
    assert handling.columns == ("aes", "flow", "cmotion")
    row = {"aes": 5.5, "flow": None, "cmotion": "tilt_up"}
    assert [text for text, _ in handling.variants("A dog.", row)] == [
        "A dog. Camera motion: tilt up. [aesthetic score: 5.5]",
        "A dog. Camera motion: tilt up.",
    ]
    for nothing in ({}, {"aes": math.nan, "flow": "much", "cmotion": " "}):
        assert handling.variants("A dog.", nothing) == [("A dog.", 1.0)]
    assert CaptionHandling().variants("A dog.", row) == [("A dog.", 1.0)]

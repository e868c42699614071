"""Cleaning of captions. `encoders/test_t5_families.py` compares the rules with those of diffusers."""

# ruff: noqa: RUF001  the rules are about characters that look alike

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text.captions.cleaning import MAX_CLEANED_CHARACTERS, _clean_once, clean_open_sora

EXAMPLES = {
    "A Cat Sleeping.": "a cat sleeping.",
    "  two   spaces\n": "two spaces",
    "<person> runs": "person runs",
    "see https://example.com/a/b for more": "see for more",
    "visit example.co.uk today": "visit uk today",
    "<b>bold</b> &amp; <i>thin</i>": "bold thin",
    "thanks @nick_1 for the clip": "thanks for the clip",
    "猫 a cat 睡": "a cat",
    "a–b — c": "a-b - c",
    "“quoted” and ‘single’": "quoted\" and 'single",
    "host 192.168.0.1 is up": "host is up",
    "clip #12 of #123456": "clip of",
    "item 1234567 sold": "item sold",
    "open holiday_photo.jpg now": "open now",
    "wait... what": "wait what",
    "***SALE*** (50%) [new]": "sale 50% new",
    "this-is-my-cute-cat": "this is my cute cat",
    "a well-known cat": "a well-known cat",
    "model jc6640 and jc6640vc": "model and",
    "worldwide free shipping of cats": "of cats",
    "click for details": "",
    "page 12 of a book": "of a book",
    "a picture of 1920x1080": "a picture of",
    "a+cat%20sleeps": "a cat sleeps",
    '"all of it"': "all of it",
    "the cafÃ© opens": "the cafã opens",
    "A dog. [aesthetic score: 5.5, motion score: 10.0]": "a dog. aesthetic score: 5.5, motion score: 10.0",
    "": "",
}
"""Captions, and what Open-Sora's rules make of them."""


@pytest.mark.parametrize(("caption", "cleaned"), EXAMPLES.items())
def test_open_sora_examples(caption: str, cleaned: str) -> None:
    assert clean_open_sora(caption) == cleaned


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("a the cat dog runs, sleeps. over under red blue 5.5".split()), max_size=20))
def test_open_sora_rules_keep_clean_captions(words: list[str]) -> None:
    """Cleaning is idempotent for plain sentences. It is not in general: a second pass may find new words to remove."""
    once = _clean_once(" ".join(words))
    assert _clean_once(once) == once == clean_open_sora(once)


@pytest.mark.parametrize("unit", ["a", ".", "a.", "1a", "-", "<", "&amp;", "a1a1", "https://", "<p>"])
def test_hostile_captions_take_bounded_time(unit: str) -> None:
    start_s = time.monotonic()
    clean_open_sora(unit * (4 * MAX_CLEANED_CHARACTERS // len(unit)))
    assert time.monotonic() - start_s < 10

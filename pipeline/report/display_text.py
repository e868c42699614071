"""Texts of a dataset made safe to look at: short, visible, without credentials."""

from __future__ import annotations

import time
import unicodedata

from pipeline.storage.urls import without_secrets

MAX_CHARACTERS = 200
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text around them."""


def display_text(value: object, length: int = MAX_CHARACTERS) -> str:
    """Return a text of the dataset as people may read it.

    Removes credentials from URLs, replaces the middle of a long text by an ellipsis, and writes invisible characters as
    escapes. HTML is not escaped here: the template does that.
    """
    text = str(value)
    if "://" in text:
        text = without_secrets(text)  # before the text is cut: half a signature would no longer be recognized
    if len(text) > length:
        text = f"{text[: length * 2 // 3]} … {text[-length // 3 :]}"
    return "".join(_visible(character) for character in text)


def format_time(unix_s: float | None) -> str:
    """Format a Unix time in UTC."""
    return "unknown" if unix_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def _visible(character: str) -> str:
    if character in BIDI_CONTROLS or unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
        return " " if character in "\n\t\r" else f"\\u{ord(character):04x}"
    return character

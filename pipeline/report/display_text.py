"""Texts of a dataset made safe to look at: short, visible, without credentials."""

from __future__ import annotations

import time

from pipeline.storage.drivers.errors import without_secrets
from pipeline.visible import visible

MAX_CHARACTERS = 200


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
    return visible(text)


def format_time(unix_s: float | None) -> str:
    """Format a Unix time in UTC."""
    return "unknown" if unix_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))

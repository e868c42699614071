"""Makes foreign text safe for a terminal, a log or a page. Every line that this program prints goes through ``visible``.

Keys, captions, paths and the errors of servers come from others. Without this they could move the cursor, clear the
screen, or add lines that look like ours.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import unicodedata
from types import TracebackType
from typing import Any

JOINERS = "\u200c\u200d"
"""Invisible characters that words of some languages and emoji need."""
FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters that are as empty as a space but are not spaces."""
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of controls, invisible characters, halves of surrogate pairs and line breaks."""

QUOTE = "  | "
"""Begins each line of a text that has several lines and comes from elsewhere."""


def visible(value: object) -> str:
    """Return a text as one line without controls: line breaks and tabs become spaces, the rest becomes escapes."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t\r":
        return " "
    if character in FILLERS or (unicodedata.category(character) in HIDDEN and character not in JOINERS):
        number = ord(character)
        return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
    return character


def make_foreign_text_visible() -> None:
    """Escape foreign text in log records, tracebacks and warnings of this process as well."""
    make_record = logging.getLogRecordFactory()

    def record_of_visible_text(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # the call has the wrong arguments for its text; logging reports that itself
            return record
        record.msg, record.args = quoted(message), ()
        return record

    logging.setLogRecordFactory(record_of_visible_text)
    logging.captureWarnings(True)
    sys.excepthook = print_traceback
    threading.excepthook = lambda arguments: print_traceback(
        arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback
    )


def quoted(text: str) -> str:
    """Return a foreign text in which every line but the first begins with ``QUOTE``."""
    return f"\n{QUOTE}".join(map(visible, text.rstrip("\n").split("\n")))


def print_traceback(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    """Write the traceback of an error that nothing expected to stderr, and the errors that led to it first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        print_traceback(type(cause), cause, cause.__traceback__)
        sys.stderr.write("\nwhich led to:\n\n")
    sys.stderr.write("".join(["Traceback (most recent call last):\n", *traceback.format_tb(frames)]))
    sys.stderr.write(f"{kind.__qualname__}: {quoted(str(error))}\n".encode("utf-8", "backslashreplace").decode())

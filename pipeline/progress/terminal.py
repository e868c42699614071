"""Output on a terminal: lines that stay, above one line that is rewritten. Foreign text adds no lines to it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from typing import TextIO

from pipeline.errors import LatentmillError
from pipeline.visible import visible

CLEAR_LINE = "\r\x1b[K"


class Terminal:
    """Writes lines to a stream, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._has_status_line = False
        self.rewrites = stream.isatty()
        """True on a terminal; elsewhere ``show`` must not be used, because a line cannot be rewritten."""

    def say(self, line: str) -> None:
        """Write one line that stays; it replaces the line of ``show``, if there is one."""
        self.say_lines([line])

    def say_lines(self, lines: Iterable[str]) -> None:
        """Write lines that stay. A line break inside one of them becomes a space."""
        text = "".join(f"{visible(line)}\n" for line in lines)
        with self._lock:
            self._write(f"{CLEAR_LINE if self._has_status_line else ''}{text}")
            self._has_status_line = False

    def say_error(self, error: Exception) -> None:
        """Write the message of an error that ends the command."""
        message, *details = error.lines if isinstance(error, LatentmillError) else (str(error),)
        self.say_lines([f"error: {message}", *(f"  {detail}" for detail in details)])

    def show(self, line: str) -> None:
        """Replace the line that was shown last; cut to the terminal's width."""
        width = shutil.get_terminal_size().columns
        with self._lock:
            self._write(CLEAR_LINE + visible(line)[: width - 1])
            self._has_status_line = True

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

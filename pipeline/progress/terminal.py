"""Output on a terminal: lines that stay, above one line that is rewritten."""

from __future__ import annotations

import shutil
import threading
from typing import TextIO

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
        """Write a line that stays; it replaces the line of ``show``, if there is one."""
        with self._lock:
            self._stream.write(f"{CLEAR_LINE if self._has_status_line else ''}{line}\n")
            self._stream.flush()
            self._has_status_line = False

    def show(self, line: str) -> None:
        """Replace the line that was shown last; cut to the terminal's width."""
        width = shutil.get_terminal_size().columns
        with self._lock:
            self._stream.write(CLEAR_LINE + line[: width - 1])
            self._stream.flush()
            self._has_status_line = True

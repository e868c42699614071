"""Lines on a terminal, below which one line is rewritten."""

from __future__ import annotations

import shutil
import threading
from typing import TextIO

CLEAR_LINE = "\r\x1b[K"


class Terminal:
    """Writes to a stream, from any thread; where that is not a terminal there is no line that is rewritten."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._shown = False
        self.rewrites = stream.isatty()

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock:
            self._stream.write(f"{CLEAR_LINE if self._shown else ''}{line}\n")
            self._stream.flush()
            self._shown = False

    def show(self, line: str) -> None:
        """A line in the place of the last shown one, cut to the terminal's width."""
        width = shutil.get_terminal_size().columns
        with self._lock:
            self._stream.write(CLEAR_LINE + line[: width - 1])
            self._stream.flush()
            self._shown = True

"""The totals of an export, and how people see them while it runs and at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from pipeline.export.unit_export import UnitExport
from pipeline.progress.formatting import byte_size, duration, number
from pipeline.progress.terminal import Terminal

SHOW_EVERY_S = 30.0
"""Seconds between two lines about the progress where lines cannot be rewritten."""


@dataclass(kw_only=True, slots=True)
class ExportSummary:
    """Totals of an export."""

    url: str
    target: str
    units: int
    left_out: dict[str, int]
    """Number of samples that were not exported, by reason."""
    samples: int = 0
    """Number of samples of the output that were exported."""
    rows: int = 0
    """Number of exported samples: larger than ``samples`` if each caption is exported."""
    files: int = 0
    size_bytes: int = 0
    captions_left: int = 0
    """Number of captions of exported samples that are not exported."""

    def add(self, outcome: UnitExport) -> None:
        """Count a unit."""
        self.samples += outcome.samples
        self.rows += outcome.rows
        self.files += outcome.files
        self.size_bytes += outcome.size_bytes
        self.captions_left += outcome.captions_left
        self.left_out = dict(sorted((Counter(self.left_out) + Counter(outcome.left_out)).items()))

    def lines(self) -> list[str]:
        """Lines for the end of the export."""
        rows = f" as {number(self.rows, 'row')}, one per caption" if self.rows != self.samples else ""
        first = (
            f"{self.url}: {number(self.samples, 'sample')}{rows} in {number(self.units, 'unit')}, "
            f"{number(self.files, 'file')}, {byte_size(self.size_bytes)} of {self.target}"
        )
        return [first, *left_out_lines(self.left_out), *captions_lines(self.captions_left)]


def left_out_lines(left_out: dict[str, int]) -> list[str]:
    """Return a line per reason why samples are not exported."""
    return [f"not exported: {number(count, 'sample')}: {reason}" for reason, count in left_out.items()]


def captions_lines(captions_left: int) -> list[str]:
    """Return a line about captions that are not exported, if there are any."""
    if not captions_left:
        return []
    return [
        f"not exported: {number(captions_left, 'further caption')} (--caption each exports a sample once per caption)"
    ]


class ExportProgress:
    """The line about a running export."""

    def __init__(self, terminal: Terminal, samples: int) -> None:
        self._terminal = terminal
        self._samples = samples
        self._started_s = self._said_s = time.monotonic()

    def show(self, summary: ExportSummary, units: int) -> None:
        """Show the totals so far. units: number of units that are done."""
        now_s = time.monotonic()
        done = summary.samples + sum(summary.left_out.values())
        left_s = (now_s - self._started_s) * (self._samples - done) / max(done, 1)
        line = (
            f"unit {units} of {summary.units}: {number(summary.samples, 'sample')}, {byte_size(summary.size_bytes)}, "
            f"{duration(left_s)} left"
        )
        if self._terminal.rewrites:
            self._terminal.show(line)
        elif now_s - self._said_s >= SHOW_EVERY_S:
            self._said_s = now_s
            self._terminal.say(line)

"""Rows of the table that ``python -m tests.gpu`` prints, and how a section adds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Meaning of a row."""

    MEASURED = ""
    OK = "ok"
    FAILED = "FAILED"
    NOT_RUN = "not run"
    CUT_SHORT = "cut short"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    section: str
    subject: str
    result: str
    verdict: Verdict = Verdict.MEASURED

    def __str__(self) -> str:
        verdict = f"  [{self.verdict}]" if self.verdict else ""
        return f"{self.section}: {self.subject}: {self.result}{verdict}"


class Report:
    """Takes the rows of one part of a section, in the process of that part."""

    def __init__(self, section: str, device: str, ends_s: float, send: Callable[[Row], None]) -> None:
        self.section = section
        self.device = device
        """``cuda`` or ``cpu``."""
        self._ends_s = ends_s
        self._send = send

    @property
    def on_gpu(self) -> bool:
        """True on a GPU. On a CPU, sections use small sizes, and show that they run rather than how fast."""
        return self.device == "cuda"

    def left_s(self) -> float:
        """Seconds until the part is cut short."""
        return self._ends_s - time.monotonic()

    def measured(self, subject: str, result: str) -> None:
        """Add a value that is neither right nor wrong."""
        self._send(Row(self.section, subject, result))

    def check(self, subject: str, passed: bool, result: str) -> None:
        """Add a result that must hold. One that does not makes the exit code 1."""
        self._send(Row(self.section, subject, result, Verdict.OK if passed else Verdict.FAILED))

    def not_run(self, subject: str, reason: str) -> None:
        """Add something that cannot be tried here."""
        self._send(Row(self.section, subject, reason, Verdict.NOT_RUN))


def format_table(rows: Sequence[Row]) -> str:
    """Format the rows as a table in Markdown, whose columns are also aligned as plain text."""
    titles = ("section", "what", "result", "verdict")
    lines = [(row.section, row.subject, row.result, str(row.verdict)) for row in rows]
    cells = [titles, *(tuple(cell.replace("|", "/") for cell in line) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(titles))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (cells[0], rule, *cells[1:])
    )

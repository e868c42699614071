"""Tells the truth about a GPU in under eight minutes: ``python -m tests.gpu``.

Prints a row for everything that it checks or measures, and at the end one table to paste into an issue. Every section has
a budget and is ``cut short`` when that is spent. Exit code 1 if a check failed. Needs no Ray; a section whose packages are
missing is not run, and its row names them. ``--device cpu`` runs small sizes, to show that the command itself works.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.gpu.parts import MACHINE, PARTS, SECTIONS, Part
from tests.gpu.processes import run_part
from tests.gpu.report import Row, Verdict, format_table

TOTAL_S = 465.0
"""Time for all parts together."""
CPU_BUDGET_S = 300.0
"""Budget of every part on a CPU, where sizes are small and the machine may be busy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="run only this one; may be repeated")
    parser.add_argument("--out", type=Path, help="file that also gets the table")
    arguments = parser.parse_args(argv)
    sections = arguments.section or SECTIONS
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # so that looking for a GPU does not start CUDA
    started_s = time.monotonic()
    _import_torch()
    rows = []
    for row in _run_all([part for part in PARTS if part.section in sections], arguments.device):
        print(f"[{time.monotonic() - started_s:4.0f} s] {row}", flush=True)
        rows.append(row)
    table = format_table(rows)
    print(f"\n{table}")
    if arguments.out:
        arguments.out.write_text(f"{table}\n")
    return int(any(row.verdict == Verdict.FAILED for row in rows))


def _run_all(parts: list[Part], device: str) -> Iterator[Row]:
    """Yield the rows of all parts; only those about the machine, if torch cannot use the device."""
    ends_s = time.monotonic() + TOTAL_S
    is_usable = True
    for row in _run(MACHINE, device, CPU_BUDGET_S if device == "cpu" else MACHINE.budget_s):
        is_usable &= row.verdict in (Verdict.MEASURED, Verdict.OK)
        yield row
    if not is_usable:
        return
    for number, part in enumerate(parts):
        left_s = ends_s - time.monotonic()
        unbudgeted = [later for later in parts[number:] if later.budget_s is None]
        budget_s = left_s / len(unbudgeted) if part.budget_s is None else min(part.budget_s, left_s)
        yield from _run(part, device, CPU_BUDGET_S if device == "cpu" else budget_s)


def _run(part: Part, device: str, budget_s: float) -> Iterator[Row]:
    what = " ".join(map(str, part.arguments)) or "the section"
    if missing := part.missing():
        yield Row(part.section, what, f"pip install --constraint constraints.txt {' '.join(missing)}", Verdict.NOT_RUN)
    elif budget_s <= 1:
        yield Row(part.section, what, "no time was left for it", Verdict.CUT_SHORT)
    else:
        yield from run_part(f"tests.gpu.{part.module}", part.arguments, part.section, device, budget_s)


def _import_torch() -> None:
    """Import once what the parts need, since their processes are forked from this one."""
    with suppress(ImportError):
        from stvae import gc_paused

        with gc_paused():
            import stvae.vae  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())

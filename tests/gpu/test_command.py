"""``python -m tests.gpu`` on a CPU, so that it works when there is a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.full_size import FULL_SIZE, SMALL
from tests.gpu.parts import MODELS, PARTS, SECTIONS, Part
from tests.gpu.processes import run_part
from tests.gpu.report import Report, Row, Verdict, format_table
from tests.support.paths import ROOT


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with one thread, which is fastest for tiny sizes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.gpu", *arguments]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_every_section_works_on_a_cpu(tmp_path: Path) -> None:
    done = command("--device", "cpu", "--out", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert done.stdout.endswith(table)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    worked = {section for section, _, _, verdict in rows if verdict in ("", "ok")}
    assert worked == {"machine", *SECTIONS}, done.stdout + done.stderr
    assert {verdict for *_, verdict in rows} <= {"", "ok", "not run"}
    paths = {result.partition(",")[0] for section, what, result, _ in rows if section == "memory" and "cap" in what}
    assert paths == {"whole", "single", "tiled", "reject"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_stops() -> None:
    done = command("--section", "loader")
    assert done.returncode == 1 and "finds no GPU" in done.stdout and "loader:" not in done.stdout


def run(report: Report, what: str) -> None:
    """A section for the tests below."""
    report.check("before", True, "fine")
    if what == "sleep":
        subprocess.run(["sleep", "600"], check=True)
    if what == "fail":
        raise ValueError("this is wrong")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "verdict", "words"),
    [
        ("sleep", Verdict.CUT_SHORT, "not done after 2 s"),
        ("fail", Verdict.FAILED, "ValueError: this is wrong"),
        ("die", Verdict.FAILED, "its process ended with signal SIGKILL"),
    ],
)
def test_a_section_that_does_not_end_well_gets_a_row(what: str, verdict: Verdict, words: str) -> None:
    began_s = time.monotonic()
    rows = list(run_part("tests.gpu.test_command", (what,), "a section", "cpu", 2.0 if what == "sleep" else 60.0))
    assert [row.verdict for row in rows] == [Verdict.OK, verdict] and rows[-1].result == words
    assert time.monotonic() - began_s < 60


def test_missing_packages_are_named() -> None:
    part = Part(section="a section", module="machine", imports=("torch", "no_such_module", "google_crc32c_x"))
    assert part.missing() == ["no_such_module", "google_crc32c_x"]


def test_the_budgets_leave_time_for_compiling_within_eight_minutes() -> None:
    assert sum(part.budget_s or 0 for part in PARTS) < 465 - 4 * 45
    assert list(MODELS) == list(FULL_SIZE) == list(SMALL)


def test_the_table_can_be_pasted() -> None:
    rows = [Row("exactness", "a | b", "1e-5", Verdict.OK), Row("job", "busy", "0.97")]
    assert format_table(rows).splitlines() == [
        "| section   | what  | result | verdict |",
        "| --------- | ----- | ------ | ------- |",
        "| exactness | a / b | 1e-5   | ok      |",
        "| job       | busy  | 0.97   |         |",
    ]

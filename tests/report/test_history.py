"""The history of jobs: throughput and time by activity, from reports of any version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.history import read_history
from pipeline.storage.store import Store
from tests.report.pages import page_of, text_of


def write_run(output: Path, name: str, reports: list[dict[str, Any]]) -> None:
    """Write the record of a job, with the fields that reports of every version have."""
    common = {"outcome": "committed", "frames": 1, "skips": {}, "rejects": {}, "size_bytes": 1, "encode_s": 1.0}
    lines = [json.dumps(common | report) + "\n" for report in reports]
    (output / "runs" / f"{name}.jsonl").write_text("".join(lines))


def test_throughput_is_spread_over_the_time_that_units_took(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    units = [
        {"unit": "a", "samples": 60, "wall_s": 60.0, "ended_s": 1e9 + 60},
        {"unit": "b", "samples": 30, "wall_s": 30.0, "ended_s": 1e9 + 60},
        {"unit": "c", "samples": 99, "wall_s": 1.0, "ended_s": 1e9 + 60, "outcome": "lost"},
        {"unit": "d", "samples": 0, "wall_s": 0.0, "ended_s": 0.0, "outcome": "already"},
    ]
    write_run(output, "new-00000", units)
    (job,) = read_history(Store(str(output)))
    edges, rates = job.throughput()
    assert (job.units, job.samples, job.elapsed_s, job.clips_per_s) == (3, 90, 60.0, 1.5)
    assert np.allclose(rates, np.where(edges[1:] <= 30, 1.0, 2.0)) and edges[-1] == 60
    assert "90 clips in 60 s" in text_of(page_of(output))


def test_records_in_parts_are_of_one_job(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    for part in range(3):
        ended_s = 1e9 + 100 * part
        write_run(output, f"a1b2-{part:05d}", [{"unit": f"{part}", "samples": 5, "wall_s": 50.0, "ended_s": ended_s}])
    write_run(output, "c3d4-00000", [{"unit": "4", "samples": 7, "wall_s": 1.0, "ended_s": 2e9}])
    first, second = read_history(Store(str(output)))
    assert (first.name, first.units, first.samples, first.elapsed_s) == ("a1b2", 3, 15, 250.0)
    assert (second.name, second.units) == ("c3d4", 1)


def test_waits_are_totals_of_each_encoder_and_stand_on_the_page(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    common = {"samples": 5, "wall_s": 50.0}
    waits = [("a", 0.0), ("a", 40.0), ("b", 60.0), ("a", 50.0)]
    reports = [{"unit": f"{n}", "encoder": name, "waited_s": s, **common} for n, (name, s) in enumerate(waits)]
    write_run(output, "new-00000", reports)
    write_run(output, "old-00000", [{"unit": "9", **common}])
    jobs = {job.name: job.waited_s for job in read_history(Store(str(output)))}
    assert jobs == {"new": 110.0, "old": 0.0}
    text = text_of(page_of(output))
    assert "waits" in text and "1.8 min" in text


def test_time_by_activity_adds_up_and_the_page_says_when_records_lack_it(output: Path) -> None:
    shutil.rmtree(output / "runs")
    (output / "runs").mkdir()
    old = {"unit": "a", "samples": 5, "wall_s": 10.0}
    write_run(output, "old-00000", [old])
    text = text_of(page_of(output))
    assert "have no times by activity" in text and "have no end times of units either" in text
    with_activities = {"ended_s": 1e9, "activities": {"encode": 6.0, "decode": 3.0, "of a later version": 0.5}}
    write_run(output, "new-00000", [old | with_activities])
    text = text_of(page_of(output))
    assert "in the VAE 6 s (60%)" in text and "waiting for decoded clips 3 s (30%)" in text
    assert "of a later version 0.5 s (5.0%)" in text and "everything else 0.5 s (5.0%)" in text
    assert "Sum over 1 unit." in text and "have no times" not in text and "have no end times" not in text
